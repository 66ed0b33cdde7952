"""One chaos run: start the parts, play the plan's requests and faults against them, heal, settle, check."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import aiohttp
import uvloop
from msgspec import Struct

from gateway.load.judge import Judge, Judgement
from gateway.tasks import Tasks
from tests.chaos import check, history
from tests.chaos.check import Checker, Doubts, Finding
from tests.chaos.drive import Drive, Record
from tests.chaos.inject import Injector
from tests.chaos.link import Link
from tests.chaos.plan import CAP, Plan, Shape
from tests.chaos.processes import GatewayProcess, PlatformProcess
from tests.chaos.store import Sentinels, Standalone, Store
from tests.ports import free_port

READ_SECONDS: Final = 1.0
PROBE_SECONDS: Final = 0.1
SETTLE_SECONDS: Final = 90.0
MAX_HISTORIES: Final = 20

Say = Callable[[str], None]


class Options(Struct, frozen=True):
    """`root`: where the package under test stands, None for the installed one. `stop_early`: a first session over the
    cap ends the run. `no_doubts`: nothing is to leave an operation in doubt, so that one which is, is a finding."""

    seed: int
    shape: Shape
    store: Literal["standalone", "sentinel"] = "standalone"
    root: Path | None = None
    stop_early: bool = False
    no_doubts: bool = False
    settle_seconds: float = SETTLE_SECONDS


class Outcome(Struct):
    options: Options
    sessions: int
    record: Record
    faults: Counter[str]
    judgement: Judgement
    findings: list[Finding]
    doubts: Doubts
    compared: int
    filled: int
    unproven: int
    settled_in_seconds: float
    lasted_seconds: float
    longest_silence_seconds: float
    longest_stall_seconds: float
    histories: dict[str, str]
    folder: str = ""

    @property
    def attaches(self) -> int:
        return self.record.sent["attach"]

    @property
    def lost(self) -> int:
        return sum(1 for finding in self.findings if finding.what == "slot lost")


def run(options: Options, say: Say = lambda line: None) -> Outcome:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(execute(options, say))


async def execute(options: Options, say: Say) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix="attachgate-chaos-"))
    world = _World(options, folder)
    try:
        await world.begin()
        outcome = await world.play(say)
    finally:
        await world.close()
    if outcome.findings:
        outcome.folder = str(folder)
        for session_id, text in outcome.histories.items():
            (folder / f"{session_id}.txt").write_text(text + "\n")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


class _World:
    """Everything that runs during one run."""

    def __init__(self, options: Options, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._plan = Plan(options.seed, options.shape)
        gateways = options.shape.gateways
        self._platform = PlatformProcess(folder, self._plan.world)
        self._store: Store = (Sentinels if options.store == "sentinel" else Standalone)(folder, gateways)
        self._clients = [Link(f"client {number}", free_port(), 0) for number in range(gateways)]
        self._upstreams = [Link(f"upstream {number}", free_port(), self._platform.port) for number in range(gateways)]
        self._gateways: list[GatewayProcess] = []
        self._tasks = Tasks("chaos")
        self._stop = asyncio.Event()
        self._longest_silence = 0.0
        self._http: aiohttp.ClientSession

    async def begin(self) -> None:
        options = self._options
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        await asyncio.gather(self._platform.begin(), self._store.begin())
        for number, (client, upstream) in enumerate(zip(self._clients, self._upstreams, strict=True)):
            await upstream.start()
            gateway = GatewayProcess(
                number,
                self._folder,
                upstream=f"http://127.0.0.1:{upstream.port}",
                store=self._store.url(number),
                durability=self._store.durability,
                skewed=number == options.shape.gateways - 1,
                root=options.root,
            )
            client.target = gateway.port
            await client.start()
            self._gateways.append(gateway)
        await asyncio.gather(*(gateway.begin() for gateway in self._gateways))

    async def play(self, say: Say) -> Outcome:
        options, plan = self._options, self._plan
        began = time.monotonic()
        judge = Judge(plan.world.accounts, plan.world.shops, CAP)
        offer = [product for product, _ in plan.world.offer()]
        checker = Checker(
            self._http, judge, self._platform.url, [f"http://127.0.0.1:{g.port}" for g in self._gateways], offer
        )
        links = {link.name: link for link in (*self._clients, *self._upstreams)}
        links |= {f"store {number}": link for number, link in enumerate(self._store.links)}
        injector = Injector(self._gateways, self._platform, self._store, links, self._http)
        drive = Drive([f"http://127.0.0.1:{link.port}" for link in self._clients], self._platform.url)
        watching = [
            self._tasks.start(self._watch(checker, drive.record, injector, say)),
            self._tasks.start(self._probe()),
        ]
        try:
            faults = self._tasks.start(injector.run(plan.faults()))
            await drive.run(plan.sessions(), self._stop)
            if not self._stop.is_set():
                await faults
        finally:
            for task in (*watching, faults):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*watching, return_exceptions=True)
        say("healing, and waiting until nothing is pending …")
        await injector.heal()
        settled = await self._check(checker, drive.record, injector, say)
        await drive.close()
        found = await asyncio.to_thread(check.events, self._store.client)
        return Outcome(
            options=options,
            sessions=len(checker.sessions),
            record=drive.record,
            faults=injector.done,
            judgement=judge.judgement(),
            findings=checker.findings,
            doubts=check.doubts(found),
            compared=checker.compared,
            filled=checker.filled,
            unproven=checker.unproven,
            settled_in_seconds=round(settled, 1),
            lasted_seconds=round(time.monotonic() - began, 1),
            longest_silence_seconds=round(self._longest_silence, 2),
            longest_stall_seconds=round(drive.longest_stall_seconds, 2),
            histories=self._histories(checker, drive.record, injector, found),
        )

    async def _check(self, checker: Checker, record: Record, injector: Injector, say: Say) -> float:
        """All that is judged at the end; how long it took until nothing was pending."""
        options, client = self._options, self._store.client
        judgement = await checker.read_journal()
        settled = 0.0
        if not (options.stop_early and judgement.over):
            settled = await checker.settle(client, options.settle_seconds)
            say(f"settled within {settled:.1f} s; comparing every session …")
            if options.no_doubts and (doubts := check.doubts(await asyncio.to_thread(check.events, client))).begun:
                text = f"{doubts.begun} operations were in doubt though no part was away and no answer was lost"
                checker.findings.append(Finding("settlement lost", text))
            await checker.compare(client, record)
            await checker.settle(client, options.settle_seconds)
            await checker.left_over(client)
            judgement = await checker.read_journal()
        for breach in judgement.breaches:
            text = f"{len(breach.foreign)} foreign products at {breach.at}: {', '.join(breach.foreign)}"
            checker.findings.append(Finding("over the cap", text, breach.session_id))
        for doubt in judgement.doubts:
            checker.findings.append(Finding("journal", doubt))
        for text in injector.bad_exits:
            checker.findings.append(Finding("bad exit", text))
        return settled

    def _histories(
        self, checker: Checker, record: Record, injector: Injector, found: list[check.Event]
    ) -> dict[str, str]:
        worst = sorted(checker.findings, key=lambda finding: finding.what != "over the cap")
        named = list(dict.fromkeys(finding.session_id for finding in worst if finding.session_id))
        return {
            session_id: history.of(session_id, checker.entries, found, record, injector.history, self._gateways)
            for session_id in named[:MAX_HISTORIES]
        }

    async def _watch(self, checker: Checker, record: Record, injector: Injector, say: Say) -> None:
        """Read the journal as it grows, say how far the run is, and stop it early where that was asked."""
        began, said = time.monotonic(), 0.0
        while True:
            await asyncio.sleep(READ_SECONDS)
            judgement = await checker.read_journal()
            lasted = time.monotonic() - began
            if lasted - said >= 10:
                said = lasted
                faults = sum(injector.done.values())
                say(
                    f"{lasted:5.0f} s  {len(checker.sessions)} sessions, {record.sent['attach']} attaches, "
                    f"{record.requests} requests, {faults} faults, {judgement.over} over the cap"
                )
            if judgement.over and self._options.stop_early:
                self._stop.set()

    async def _probe(self) -> None:
        """How long the platform keeps anybody waiting: beyond what the plan does to it, the machine is too busy."""
        url = f"{self._platform.url}/_platform/journal?after=999999999999"
        while True:
            began = time.monotonic()
            async with self._http.get(url) as answer:
                await answer.read()
            self._longest_silence = max(self._longest_silence, time.monotonic() - began)
            await asyncio.sleep(PROBE_SECONDS)

    async def close(self) -> None:
        await self._tasks.cancel()
        await asyncio.gather(*(gateway.kill() for gateway in self._gateways))
        await self._platform.kill()
        for link in (*self._clients, *self._upstreams):
            await link.close()
        await self._store.close()
        await self._http.close()
