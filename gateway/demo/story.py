"""`attachgate demo`: the notice, played as a live-room client through a real gateway.

Starts an embedded Redis, the reference platform and a gateway, plays the scenes over HTTP, prints each step with its
answer as it happens, and says in red what came otherwise than expected. Ends with the merchant's view of a session.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway import settings
from gateway.demo import platform
from gateway.demo.scenes import ENTERPRISE, INDIVIDUAL, RACERS, Race, Step, story
from gateway.errors import ConfigurationError
from gateway.serve import Gateway
from gateway.telemetry import configure_logging

ASK_AGAIN_SECONDS = 0.2

_CONFIG = """
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

    async def play(self, run: str) -> None:
        for number, scene in enumerate(story(run), start=1):
            self._console.print(f"\n[bold cyan]{number}. {escape(scene.title)}[/] [dim]({scene.notice})[/]")
            for step in scene.steps:
                self.steps += 1
                await (self._race(step) if isinstance(step, Race) else self._step(step))

    async def _step(self, step: Step) -> None:
        until = asyncio.get_running_loop().time() + step.wait
        while True:
            status, body = await self.ask(step)
            problems = list(_problems(step, status, body))
            if not problems or asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(ASK_AGAIN_SECONDS)
        self._print(step.says, f"{step.method} {step.path}{_short(step.body)}", status, _told(body))
        self._judge(problems)

    async def ask(self, step: Step) -> tuple[int, Any]:
        headers = {} if step.to_platform else {"X-Account-Id": step.account}
        if step.language:
            headers["Accept-Language"] = step.language
        base = self._platform_url if step.to_platform else self._gateway_url
        async with self._http.request(step.method, base + step.path, json=step.body, headers=headers) as response:
            return response.status, _decoded(await response.read())

    async def _race(self, race: Race) -> None:
        products = [f"race-{n}" for n in range(1, RACERS + 1)]
        for product in products:
            body = {"product_id": product, "shop_id": "ally-shop-1"}
            await self.ask(Step("", "PUT", f"/_platform/products/{product}", body=body, to_platform=True))
        path = f"/live/sessions/{race.session_id}/products"
        attaches = [Step("", "POST", path, race.account, {"product_id": product}) for product in products]
        answers = await asyncio.gather(*map(self.ask, attaches))
        let_in = sum(status == 200 for status, _ in answers)
        refused = sum(status == 403 for status, _ in answers)
        _, journal = await self.ask(Step("", "GET", "/_platform/journal", to_platform=True))
        entries = [entry for entry in journal["entries"] if entry["session_id"] == race.session_id]
        applied = {entry["product_id"] for entry in entries if entry["operation"] == "attach"}
        told = f"{let_in} let in, {refused} refused; the upstream's own journal has {', '.join(sorted(applied))}"
        self._print(race.says, f"POST {path} x {RACERS}", 200, told)
        problems = []
        if (let_in, refused, len(applied)) != (race.winners, RACERS - race.winners, race.winners):
            problems.append(f"expected exactly {race.winners} of {RACERS} to get in")
        self._judge(problems)

    def _print(self, says: str, request: str, status: int, told: str) -> None:
        colour = "green" if status < 300 else "yellow" if status < 500 else "magenta"
        self._console.print(f"   {escape(says)}")
        self._console.print(f"     [dim]{escape(request)}[/] → [bold {colour}]{status}[/] {escape(told)}")

    def _judge(self, problems: list[str]) -> None:
        if problems:
            self.wrong += 1
        for problem in problems:
            self._console.print(f"     [bold red]not as expected: {escape(problem)}[/]")

    async def merchant_view(self, session_id: str) -> None:
        """What the merchant sees: how many places, used by what, since when."""
        _, view = await self.ask(Step("", "GET", f"/_gateway/sessions/{session_id}"))
        table = Table(title=f"{view['account_id']}, session {session_id}: {view['used']} of {view['cap']} places used")
        for heading in ("product", "since", "in the cart", "in doubt"):
            table.add_column(heading)
        for slot in view["slots"]:
            yes_no = ["yes" if slot[name] else "no" for name in ("attached", "in_doubt")]
            table.add_row(slot["product_id"], slot["since"], *yes_no)
        self._console.print()
        self._console.print(table)


def _problems(step: Step, status: int, body: Any) -> Any:
    """What came otherwise than the step expects, in words."""
    if status != step.status:
        yield f"expected status {step.status}, got {status}"
        return
    for name, wanted in (("reason", step.reason), ("detail", step.detail), ("used", step.used)):
        if wanted not in ("", None) and body.get(name) != wanted:
            yield f"expected {name} {wanted!r}, got {body.get(name)!r}"
    if step.doubtful is not None:
        doubtful = tuple(slot["product_id"] for slot in body["slots"] if slot["in_doubt"])
        if doubtful != step.doubtful:
            yield f"expected in doubt {step.doubtful}, got {doubtful}"
    if step.hidden and step.hidden in str(body):
        yield f"expected nothing with {step.hidden!r} in the list"


def _decoded(body: bytes) -> Any:
    return msgspec.json.decode(body) if body else {}


def _short(body: dict[str, Any] | None) -> str:
    return " " + msgspec.json.encode(body).decode() if body is not None else ""


def _told(body: Any) -> str:
    """The part of an answer that a reader wants."""
    if "detail" in body:
        return f"{body['reason']}: {body['detail']}"
    if "slots" in body:
        slots = [slot["product_id"] + ("?" if slot["in_doubt"] else "") for slot in body["slots"]]
        return f"{body['used']} of {body['cap']} used: {', '.join(slots)}"
    if "products" in body:
        return ", ".join(product["product_id"] for product in body["products"])
    return ", ".join(body["attached"]) if "attached" in body else str(body.get("state", ""))


async def _play(port: int, once: bool, console: Console) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    upstream = await platform.start()
    try:
        gateway = await Gateway.start(*_settings(port, upstream.url))
        try:
            async with aiohttp.ClientSession() as http:
                player = Player(console, http, gateway.url, upstream.url)
                console.print(f"[bold]attachgate[/] at {gateway.url}, in front of a platform at {upstream.url}")
                telling = asyncio.ensure_future(player.play("demo"))
                stopping = asyncio.ensure_future(stop.wait())
                await asyncio.wait({telling, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not telling.done():
                    telling.cancel()
                    return 130
                await telling
                await player.merchant_view("demo-5")
                verdict = "[bold green]as expected[/]" if not player.wrong else f"[bold red]{player.wrong} not[/]"
                console.print(f"\n{player.steps} steps, {verdict}.")
                if not once:
                    _invite(console, gateway, upstream.url)
                    await stopping
                stopping.cancel()
                return 1 if player.wrong else 0
        finally:
            await gateway.close()
    finally:
        await upstream.close()


def _settings(port: int, upstream_url: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gateway.toml"
        path.write_text(_CONFIG.format(port=port, upstream=upstream_url))
        return settings.load_all(path, {})


def _invite(console: Console, gateway: Gateway, platform_url: str) -> None:
    console.print("\nAll of it stays up until Ctrl-C. To try:")
    own = f"-H 'X-Account-Id: {INDIVIDUAL}'"
    enterprise = f"-H 'X-Account-Id: {ENTERPRISE}' -H 'Content-Type: application/json'"
    new = f'{{"session_id":"mine","account_id":"{ENTERPRISE}"}}'
    for line in (
        f"curl -s {own} {gateway.url}/_gateway/sessions/demo-5",
        f"curl -s {enterprise} -d '{new}' {gateway.url}/live/sessions",
        f'curl -s {enterprise} -d \'{{"product_id":"ally-1"}}\' {gateway.url}/live/sessions/mine/products',
        f"curl -s {gateway.admin_url}/metrics",
        f"curl -s {platform_url}/_platform/journal",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def run(*, port: int, once: bool) -> int:
    """Play the story; 0 where every step went as expected, 1 where one did not, 2 where it could not begin."""
    configure_logging("error")
    console = Console(soft_wrap=True, highlight=False)
    try:
        return asyncio.run(_play(port, once, console))
    except OSError as error:
        print(f"demo: port {port} can't be had ({error.strerror}); choose another with --port.", file=sys.stderr)
    except ConfigurationError as error:
        print(f"demo: {error}", file=sys.stderr)
    return 2
