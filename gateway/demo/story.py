"""`attachgate demo`: the notice, played as a live-room client through a real gateway.

Starts an embedded Redis, the reference platform and a gateway, plays the scenes over HTTP, and prints each step with
its answer as it happens. What comes otherwise than expected, no answer or one that can't be read included, is said in
red and counted; it never ends the story. Whatever ends it, a signal or a reader that has left, all is closed again.
Knows nothing of the notice: what is asked and expected stands in `scenes`.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway import settings
from gateway.config import Config
from gateway.demo import answers, platform, scenes
from gateway.demo.answers import Answer, Body
from gateway.demo.scenes import ENTERPRISE, INDIVIDUAL, RACERS, MerchantView, Race, Scene, Step
from gateway.errors import ConfigurationError
from gateway.policy.model import Policy
from gateway.serve import Gateway
from gateway.telemetry import configure_logging

RUN: Final = "demo"
ASK_AGAIN_SECONDS: Final = 0.2
ANSWER_SECONDS: Final = 10.0
MAX_PORT: Final = 65535
INTERRUPTED: Final = 130
_NO_ADDRESS: Final = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)

_CONFIG: Final = """
[listen]
port = {port}
admin_port = 0
drain_seconds = 1

[upstream]
url = "{upstream}"
response_timeout_seconds = 0.5
late_apply_seconds = 1.5

[ledger]
url = "embedded"
hold_seconds = 3

[directory]
ttl_seconds = 1
"""


class Player:
    """Plays steps and counts those that went otherwise than expected."""

    def __init__(self, console: Console, http: aiohttp.ClientSession, gateway_url: str, platform_url: str) -> None:
        self._console = console
        self._http = http
        self._gateway_url = gateway_url
        self._platform_url = platform_url
        self.steps = 0
        self.wrong = 0

    async def play(self, story: tuple[Scene, ...]) -> None:
        for number, scene in enumerate(story, start=1):
            self._console.print(f"\n[bold cyan]{number}. {escape(scene.title)}[/] [dim]({escape(scene.notice)})[/]")
            for step in scene.steps:
                await self.play_step(step)

    async def play_step(self, step: Step | Race | MerchantView) -> None:
        match step:
            case Race():
                problems = await self._race(step)
            case MerchantView():
                problems = await self._merchant_view(step)
            case Step():
                problems = await self._step(step)
        self.steps += 1
        self.wrong += bool(problems)
        for problem in problems:
            self._console.print(f"     [bold red]not as expected: {escape(problem)}[/]")

    async def ask(self, step: Step) -> Answer:
        """The answer; also where none comes, or not in time."""
        headers = {} if step.to_platform else {"X-Account-Id": step.account}
        if step.language:
            headers["Accept-Language"] = step.language
        url = (self._platform_url if step.to_platform else self._gateway_url) + step.path
        try:
            async with self._http.request(step.method, url, json=step.body, headers=headers) as response:
                return answers.read(response.status, await response.read())
        except TimeoutError:
            return answers.none(f"no whole answer within {ANSWER_SECONDS:g} s")
        except aiohttp.ClientError as error:
            return answers.none(f"no answer: {error}")

    async def _step(self, step: Step) -> list[str]:
        until = asyncio.get_running_loop().time() + step.wait_seconds
        while True:
            answer = await self.ask(step)
            problems = list(answers.problems(step, answer))
            if not problems or asyncio.get_running_loop().time() >= until:
                break
            await asyncio.sleep(ASK_AGAIN_SECONDS)
        self._print_step(step, answer)
        return problems

    async def _race(self, race: Race) -> list[str]:
        products = [f"race-{n}" for n in range(1, RACERS + 1)]
        for product in products:
            record = {"product_id": product, "shop_id": "ally-shop-1"}
            await self.ask(Step("", "PUT", f"/_platform/products/{product}", body=record, to_platform=True))
        path = f"/live/sessions/{race.session_id}/products"
        attaches = [Step("", "POST", path, race.account, {"product_id": product}) for product in products]
        came = await asyncio.gather(*map(self.ask, attaches))
        let_in = {product for product, answer in zip(products, came, strict=True) if answer.status == 200}
        statuses = Counter(answer.status for answer in came)
        journal = (await self.ask(Step("", "GET", "/_platform/journal", to_platform=True))).body
        applied = {
            str(entry.product_id)
            for entry in journal.entries
            if (entry.session_id, entry.operation) == (race.session_id, "attach")
        }
        counts = ", ".join(f"{status} × {count}" for status, count in sorted(statuses.items()))
        told = f"the platform's own journal has {', '.join(sorted(applied)) or 'none'}"
        self._print(race.says, f"POST {path} × {RACERS}", counts, "green", told)
        problems = []
        if statuses != Counter({200: race.winners, 403: RACERS - race.winners}):
            problems.append(f"expected exactly {race.winners} of {RACERS} let in (200), all others refused (403)")
        if applied != let_in:
            problems.append(f"expected the journal to have what was let in: {', '.join(sorted(let_in)) or 'none'}")
        return problems

    async def _merchant_view(self, view: MerchantView) -> list[str]:
        """Prints the table where there is one."""
        step = Step(view.says, "GET", f"/_gateway/sessions/{view.session_id}", view.account, used=view.used)
        answer = await self.ask(step)
        self._print_step(step, answer)
        problems = list(answers.problems(step, answer))
        if not problems:
            self._console.print(_places(answer.body))
        return problems

    def _print_step(self, step: Step, answer: Answer) -> None:
        status = answer.status
        colour = "red" if not status else "green" if status < 300 else "yellow" if status < 500 else "magenta"
        body = "" if step.body is None else " " + msgspec.json.encode(step.body).decode()
        request = f"{step.method} {step.path}{body}"
        self._print(step.says, request, str(status) if status else "-", colour, answer.told)

    def _print(self, says: str, request: str, status: str, colour: str, told: str) -> None:
        self._console.print(f"   {escape(says)}")
        self._console.print(f"     [dim]{escape(request)}[/] → [bold {colour}]{status}[/] {escape(told)}")


def _places(view: Body) -> Table:
    title = f"{view.account_id}, session {view.session_id}: {view.used} of {view.cap} places used"
    table = Table("product", "since", "in the cart", "in doubt", title=title)
    for slot in view.slots:
        yes_no = ["yes" if is_so else "no" for is_so in (slot.attached, slot.in_doubt)]
        table.add_row(slot.product_id, slot.since, *yes_no)
    return table


class _Screen(Console):
    def on_broken_pipe(self) -> None:
        """The default ends the program from within a task, past what has to be closed."""
        raise BrokenPipeError


async def _play(port: int, once: bool, console: Console) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as open_parts:
        upstream = await platform.start()
        open_parts.push_async_callback(upstream.close)
        try:
            gateway = await Gateway.start(*_settings(port, upstream.url))
        except OSError as error:
            print(_cannot_start(port, error), file=sys.stderr)
            return 2
        open_parts.push_async_callback(gateway.close)
        limit = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        http = await open_parts.enter_async_context(aiohttp.ClientSession(timeout=limit))
        player = Player(console, http, gateway.url, upstream.url)
        console.print(f"[bold]attachgate[/] at {gateway.url}, in front of a platform at {upstream.url}")
        if not await _ends_before(stop, player.play(scenes.story(RUN))):
            return INTERRUPTED
        verdict = "[bold green]as expected[/]" if not player.wrong else f"[bold red]{player.wrong} not as expected[/]"
        console.print(f"\n{player.steps} steps, {verdict}.")
        if not once:
            _invite(console, gateway, upstream.url)
            await stop.wait()
        return 1 if player.wrong else 0


async def _ends_before(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether the work has ended before `stop` is set; then it is cancelled. Raises what the work raises."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


def _settings(port: int, upstream_url: str) -> tuple[Config, Policy]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gateway.toml"
        path.write_text(_CONFIG.format(port=port, upstream=upstream_url))
        return settings.load_all(path, {})


def _cannot_start(port: int, error: OSError) -> str:
    """asyncio puts its own words around the system's; a file that can't be had is named in the error."""
    if error.errno in _NO_ADDRESS and error.filename is None:
        return f"demo: port {port} can't be had ({os.strerror(error.errno)}); choose another with --port."
    return f"demo: can't start: {error}"


def _invite(console: Console, gateway: Gateway, platform_url: str) -> None:
    console.print(f"\nAll of it stays up until Ctrl-C: gateway {gateway.url}, its admin {gateway.admin_url},")
    console.print(f"platform {platform_url}. To try:")
    own = f"-H 'X-Account-Id: {INDIVIDUAL}'"
    enterprise = f"-H 'X-Account-Id: {ENTERPRISE}' -H 'Content-Type: application/json'"
    new = f'{{"session_id":"mine","account_id":"{ENTERPRISE}"}}'
    for line in (
        f"curl -s {own} {gateway.url}/_gateway/sessions/{RUN}-5",
        f"curl -s {enterprise} -d '{new}' {gateway.url}/live/sessions",
        f'curl -s {enterprise} -d \'{{"product_id":"ally-1"}}\' {gateway.url}/live/sessions/mine/products',
        f"curl -s {gateway.admin_url}/metrics",
        f"curl -s {platform_url}/_platform/journal",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def run(*, port: int, once: bool) -> int:
    """Play the story; 0 where every step went as expected, 1 where one did not, 2 where it could not begin, 130 where
    it was interrupted. Raises `BrokenPipeError` where its reader has left."""
    if not 0 <= port <= MAX_PORT:
        print(f"demo: --port: expected a whole number from 0 to {MAX_PORT}, got {port}.", file=sys.stderr)
        return 2
    configure_logging("error")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that has no Chinese shows question marks; the story goes on.
        sys.stdout.reconfigure(errors="replace")
    try:
        return asyncio.run(_play(port, once, _Screen(soft_wrap=True, highlight=False)))
    except ConfigurationError as error:
        advice = "Put a redis-server or valkey-server that starts on PATH, and try again."
        print(f"demo: can't start: {error}\n{advice}", file=sys.stderr)
        return 2
