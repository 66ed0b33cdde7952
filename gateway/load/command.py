"""One run of `attachgate load`, from its arguments to its exit code: sow, open the rooms, drive, judge,
report."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console

from gateway.errors import ConfigurationError
from gateway.load import page, report, world
from gateway.load.client import Client
from gateway.load.drive import Drive, Pace, reason_of
from gateway.load.evidence import Evidence, Slots, Unusable
from gateway.load.judge import Judge, Judgement, judge_lists
from gateway.load.measure import Measures
from gateway.load.options import Options, parse
from gateway.load.progress import Progress
from gateway.load.report import Report
from gateway.load.scenario import Scenario, Session, Shape, State
from gateway.load.world import World

OPENING_AT_ONCE = 32
OPENING_TRIES = 8
EVIDENCE_SECONDS = 60.0
PLAIN_WIDTH = 120


def run(args: argparse.Namespace, console: Console | None = None) -> int:
    """0 where the promise and every bound held, 1 where one was broken, 2 where there was nothing to test."""
    console = console or Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    try:
        options = parse(args)
        found = world.read(options.data, options.cap) if options.data is not None else None
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            outcome = runner.run(execute(options, found, console))
        _write(outcome)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    except Unusable as error:
        print(f"attachgate load: {error}", file=sys.stderr)
        return 2
    (report.show_verdict if options.quiet else report.show)(outcome, console)
    return 1 if outcome.broken else 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _write(outcome: Report) -> None:
    files = ((outcome.options.json, _as_json), (outcome.options.html, page.render))
    for file, render in files:
        if file is None:
            continue
        try:
            Path(file).write_bytes(render(outcome).encode())
        except OSError as error:
            raise Unusable(f"the report can't be written to {file}: {error.strerror}") from error


def _as_json(outcome: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode() + "\n"


async def execute(options: Options, found: World | None, console: Console) -> Report:
    """The whole run. Raises `Unusable`."""
    limits = aiohttp.ClientTimeout(total=EVIDENCE_SECONDS)
    async with aiohttp.ClientSession(timeout=limits) as http:
        evidence = Evidence(http, options.targets, options.platform, options.identity_header)
        await evidence.probe()
        label = f"load-{secrets.token_hex(4)}"
        at = datetime.now(UTC).isoformat(timespec="seconds")
        scene = found or world.made_up(label, options.rooms)
        judge = Judge(scene.accounts, scene.shops, options.cap)
        if options.platform is not None:
            await evidence.sow(scene)
            judge.skip_to(max((entry.seq for entry in await evidence.journal(0)), default=0))
        shape = Shape(options.rooms, options.clients_per_room, options.zipf, options.mix)
        scenario = Scenario(shape, scene.merchants(), scene.offer(), label, options.seed)
        measures = Measures()
        interrupted = await _drive(options, scenario, measures, console)
        judgement, slots, basis = await _judge(options, scenario, scene, judge, evidence)
    return report.build(options, label, at, measures, judgement, slots, basis=basis, interrupted=interrupted)


async def _drive(options: Options, scenario: Scenario, measures: Measures, console: Console) -> bool:
    """Open the rooms, then run the schedule; whether it was interrupted."""
    # Not the loop's: uvloop's counts in whole milliseconds.
    clock = time.monotonic
    clients = [
        Client(url, options.identity_header, options.connections, options.timeout_seconds, clock)
        for url in options.targets
    ]
    pace = Pace(options.rate, options.duration_seconds, options.retries, options.timeout_seconds)
    progress = Progress(console, measures, options.rate, options.duration_seconds, options.quiet)
    drive = Drive(scenario, clients, pace, measures, seed=options.seed, clock=clock, on_second=progress.show)
    try:
        if failed := await drive.open(scenario.opening(), OPENING_AT_ONCE, OPENING_TRIES):
            action, answer = failed[0]
            said = f"{answer.status} {reason_of(answer)}".strip() if answer.status else answer.reason
            text = answer.body.decode(errors="replace")[:300]
            raise Unusable(
                f"no session could be created as account {action.session.account_id}: the answer to"
                f" POST /live/sessions was {said} {text}".rstrip()
            )
        with _interrupts() as stop, progress:
            await drive.run(stop.is_set)
            measures.queued = sum(client.queued for client in clients)
            measures.longest_wait_ms = max(client.longest_wait_seconds for client in clients) * 1000
            return stop.is_set()
    finally:
        for client in clients:
            await client.close()


@contextlib.contextmanager
def _interrupts() -> Iterator[asyncio.Event]:
    """The first SIGINT ends the schedule, and what was done is judged; the second ends the program."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def interrupt() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    except (NotImplementedError, RuntimeError, ValueError):
        yield stop
        return
    try:
        yield stop
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _judge(
    options: Options, scenario: Scenario, scene: World, judge: Judge, evidence: Evidence
) -> tuple[Judgement, Slots, str]:
    created = [session for session in scenario.sessions if session.state is not State.creating]
    if options.platform is None:
        seen, problems = await evidence.seen(created)
        judgement = judge_lists(seen, scene.accounts, scene.shops, options.cap)
        judgement = msgspec.structs.replace(judgement, doubts=problems)
        basis = "the sessions' lists at the end and what clients were told (without --platform)"
        return judgement, Slots(0, [], 0.0, "that needs the platform's journal (--platform)"), basis
    judge.feed(await evidence.journal(judge.last_seq))
    slots = await evidence.slots(_sample(options, created, judge), judge, options.settle_seconds)
    return judge.judgement(), slots, "the platform's journal"


def _sample(options: Options, sessions: list[Session], judge: Judge) -> list[Session]:
    """Sessions that go on and have a cap; first those where a request had no answer, since there slots were
    in doubt."""
    going = [
        session
        for session in sessions
        if session.state is not State.ended and (count := judge.count(session.id)) is not None and count.cap is not None
    ]
    random.Random(options.seed).shuffle(going)
    going.sort(key=lambda session: not session.shaken)
    return going[: options.sample]
