"""The rows: what each measures, of all peers in turn, round after round."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import redis
from msgspec import Struct

from gateway.ledger.steps import bucket_of
from tests.bench import openloop, streams, wrk
from tests.bench.mixes import MIXES, attach, message, requests, session_names
from tests.bench.peers.kinds import HERE, Gateway, Nginx, Peer, Site, Store, Upstream
from tests.bench.processes import LOAD_CORE, cpu_seconds, forget_peak, peak_bytes, resident_bytes
from tests.bench.results import Row

CONNECTIONS: Final = 64
WARM_SECONDS: Final = 4
SESSIONS: Final = 10_000
"""Opened before anything is measured."""
MESSAGES: Final = 50_000
OPENING_AT_ONCE: Final = 16
OPENING_PASSES: Final = 3
REFUSED_TOLERANCE: Final = 0.03
MIB: Final = 1024 * 1024
KIB: Final = 1024
BODY_BYTES: Final = 64 * MIB
IDLE: Final = 1_000
SIZES: Final = (1_000, 100_000, 1_000_000)
TOUCHED: Final = 1_000
"""Sessions that are asked about, whatever the number in Redis, so that only that number differs."""
RETENTION_MS: Final = 604_800_000
PATTERNS: Final = {"f": "f9999998", "o": "o9999995"}


class Bench(Struct):
    """A run's parts. `opened`: the sessions that exist. `rounds` and `seconds` are of each row."""

    folder: Path
    upstream: Upstream
    store: Store
    peers: list[Peer]
    opened: list[str]
    rounds: int
    seconds: float
    sizes: Sequence[int]
    say: Callable[[str], None]
    rows: dict[str, Row] = {}

    def messages(self, mix: str, sessions: Sequence[str], name: str) -> Path:
        """The file that wrk reads, by its name."""
        file = self.folder / f"{name}.requests"
        if not file.exists():
            file.write_bytes(b"\0".join(message(request) for request in requests(mix, sessions, MESSAGES)))
        return file

    def row(self, name: str, says: str) -> Row:
        self.say(f"{name}: {says}")
        row = self.rows[name] = Row(name, says, {}, {}, [])
        return row


async def open_sessions(bench: Bench, peer: Peer) -> None:
    """Each session is known: filled into Redis, or asked for once."""
    peer.seed(bench.store.client, bench.opened)
    if not isinstance(peer, Gateway):
        return
    for _ in range(OPENING_PASSES):
        statuses = await openloop.each(peer.port, [attach(session, "p0") for session in bench.opened], OPENING_AT_ONCE)
        wrong = sum(status != 200 for status in statuses)
        if not wrong:
            return
    raise RuntimeError(f"{peer.name}: {wrong} of {len(statuses)} sessions could not be opened")


async def run_wrk(
    bench: Bench, peer: Peer, file: Path, seconds: float, store: Store
) -> tuple[wrk.Said, dict[str, float]]:
    """One run at saturation: what wrk said, and the figures of it."""
    sides = {"CPU": peer.pids(), "Redis": store.pids(), "upstream": bench.upstream.pids()}
    script = HERE.parent / "wrk.lua"
    options = ["-t", "1", "-c", str(CONNECTIONS), "-d", f"{max(1, round(seconds))}s", "--latency", "-s", str(script)]
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", *options, f"http://127.0.0.1:{peer.port}/", "--", str(file)]
    before, begun = {side: cpu_seconds(pids) for side, pids in sides.items()}, time.perf_counter()
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    lasted = time.perf_counter() - begun
    spent = {side: cpu_seconds(pids) - before[side] for side, pids in sides.items()}
    said = wrk.read(out.decode())
    figures = {"requests/s": said.requests / said.seconds, "p50": said.p50_ms, "p99": said.p99_ms}
    if peer.pids():
        figures |= {side: spent[side] / said.requests * 1e6 for side in ("CPU", "Redis")}
        figures["core busy"] = 100 * spent["CPU"] / lasted
    figures["upstream"] = spent["upstream"] / said.requests * 1e6
    return said, figures


async def saturation(bench: Bench, name: str) -> None:
    """As much as goes, with 64 connections; a first run of each is not measured, since what a peer remembers of the
    sessions it has to meet them for."""
    mix = MIXES[name]
    row = bench.row(name, mix.says)
    file = bench.messages(name, bench.opened, name)
    for peer in bench.peers:
        await run_wrk(bench, peer, file, WARM_SECONDS, bench.store)
    for _ in range(bench.rounds):
        for peer in bench.peers:
            said, figures = await run_wrk(bench, peer, file, bench.seconds, bench.store)
            row.add(peer.name, figures)
            share = said.refused / said.requests
            if peer.judges and abs(share - mix.refused) > REFUSED_TOLERANCE:
                row.note(f"{peer.name}: {share:.0%} of the answers were 4xx or 5xx, expected {mix.refused:.0%}")
            if said.errors:
                row.note(f"{peer.name}: {said.errors} socket errors")


async def maximum(bench: Bench, peer: Peer) -> float:
    """Requests a second of the mix; measured now where the row was not."""
    measured = bench.rows["mix"].median_of(peer.name, "requests/s") if "mix" in bench.rows else None
    if measured is None:
        file = bench.messages("mix", bench.opened, "mix")
        _, figures = await run_wrk(bench, peer, file, bench.seconds, bench.store)
        measured = figures["requests/s"]
    return measured


async def latency(bench: Bench) -> None:
    """The mix at fixed rates."""
    serious = {peer.name: await maximum(bench, peer) for peer in bench.peers if peer.serious}
    judging = [peer for peer in bench.peers if peer.judges]
    if not serious:
        serious = {peer.name: await maximum(bench, peer) for peer in judging}
    slowest = min(serious, key=lambda name: serious[name])
    asked = list(requests("mix", bench.opened, MESSAGES, seed=2))
    rates = [
        (f"latency-{share}", serious[slowest] * share / 100, f"{share} % of {slowest}'s maximum", judging)
        for share in (25, 50, 75)
    ]
    if "nginx" in serious:
        half = serious["nginx"] / 2
        able = [peer for peer in judging if await maximum(bench, peer) > 1.2 * half]
        rates.append(("latency-half-nginx", half, "half of nginx + Lua's maximum, of those that can", able))
    for name, rate, says, peers in rates:
        row = bench.row(name, f"the mix at {rate:,.0f} requests/s, {says}; from when each was due")
        for _ in range(bench.rounds):
            for peer in peers:
                found = await openloop.measure(peer.port, asked, rate, bench.seconds)
                row.add(peer.name, latencies(found))
                row.curves[peer.name] = found.curve


def latencies(found: openloop.Latency) -> dict[str, float]:
    return {
        "p50": found.p50_ms,
        "p99": found.p99_ms,
        "p99.9": found.p999_ms,
        "max": found.max_ms,
        "failed": float(found.failed),
    }


async def bodies(bench: Bench) -> None:
    """Large bodies stream through."""
    row = bench.row("bodies", "64 MiB down and up through one connection; what the proxy's memory grows by meanwhile")
    for _ in range(bench.rounds):
        for peer in bench.peers:
            for way, work in (("down", streams.download), ("up", streams.upload)):
                pids = peer.pids()
                before = resident_bytes(pids)
                forget_peak(pids)
                took = await work(peer.port, BODY_BYTES)
                values = {way: BODY_BYTES / MIB / took}
                if pids:
                    values[f"{way} grows"] = max(0, peak_bytes(pids) - before) / MIB
                row.add(peer.name, values)


async def idle(bench: Bench) -> None:
    """Clients that only wait."""
    row = bench.row("idle", f"{IDLE:,} idle clients: the proxy's memory by each, and the whole with both")
    for peer in bench.peers:
        if not peer.pids():
            continue
        values: dict[str, float] = {}
        held: list[streams.Held] = []
        kinds = (("SSE", streams.open_events), *((("WebSocket", streams.open_socket),) if peer.sockets else ()))
        for label, work in kinds:
            before = resident_bytes(peer.pids())
            held += [await work(peer.port, f"f{number:07d}") for number in range(IDLE)]
            values[label] = (resident_bytes(peer.pids()) - before) / IDLE / KIB
        values["memory"] = resident_bytes(peer.pids()) / MIB
        row.add(peer.name, values)
        for one in held:
            await one.close()


async def start(bench: Bench) -> None:
    """From nothing to the first answer."""
    row = bench.row("start", "from starting the process to the first answer through it")
    for _ in range(bench.rounds):
        for peer in bench.peers:
            if not peer.children:
                continue
            again = type(peer)(Site(bench.folder / "again", bench.upstream.port, bench.store.port))
            again.site.folder.mkdir(exist_ok=True)
            again.prepare()
            begun = time.perf_counter()
            try:
                await again.begin()
                await openloop.each(again.port, list(requests("small", ["f0000001"], 1)), 1)
                row.add(peer.name, {"ready after": (time.perf_counter() - begun) * 1000})
            finally:
                await again.end()


class Sized(Struct):
    """A proxy with its own Redis, which has `size` sessions; `asked` are those that the load asks about."""

    name: str
    peer: Peer
    store: Store
    size: int
    asked: list[str]


async def sessions(bench: Bench) -> None:
    """As many sessions in Redis as a platform may have live: one Redis and one proxy for each number, in turn."""
    row = bench.row(
        "sessions",
        f"the mix over {TOUCHED:,} sessions, with more and more in Redis; at half of the maximum for the latency",
    )
    found: list[Sized] = []
    try:
        for kind in (Gateway, Nginx):
            if any(type(peer) is kind for peer in bench.peers):
                for size in bench.sizes:
                    found.append(await _sized(bench, kind, size))
                    await _fill(row, found[-1])
        for _ in range(bench.rounds):
            for one in found:
                file = bench.messages("mix", one.asked, f"mix-of-{one.size}")
                _, figures = await run_wrk(bench, one.peer, file, bench.seconds, one.store)
                row.add(one.name, {metric: figures[metric] for metric in ("requests/s", "CPU", "Redis")})
        rates = {one.peer.name: (row.median_of(one.name, "requests/s") or 0.0) / 2 for one in reversed(found)}
        for _ in range(bench.rounds):
            for one in found:
                asked = list(requests("mix", one.asked, MESSAGES, seed=3))
                measured = await openloop.measure(one.peer.port, asked, rates[one.peer.name], bench.seconds)
                row.add(one.name, latencies(measured))
    finally:
        for one in found:
            await one.peer.end()
            await one.store.kill()


async def _sized(bench: Bench, kind: type[Peer], size: int) -> Sized:
    label = f"{kind.name}-{size}"
    store = Store(f"redis-{label}", bench.folder)
    await store.begin()
    folder = bench.folder / label
    folder.mkdir()
    peer = kind(Site(folder, bench.upstream.port, store.port))
    peer.prepare()
    await peer.begin()
    asked = random.Random(size).sample(session_names(size), min(TOUCHED, size))
    return Sized(f"{kind.name} {size:,}", peer, store, size, asked)


async def _fill(row: Row, one: Sized) -> None:
    """Sessions in Redis, and what each costs there."""
    names, client = session_names(one.size), one.store.client
    if isinstance(one.peer, Gateway):
        await openloop.each(one.peer.port, [attach(session, "p0") for session in PATTERNS.values()], 1)
    before = int(client.info("memory")["used_memory"])
    if isinstance(one.peer, Gateway):
        copy_ledger(client, one.peer.prefix, names)
    else:
        one.peer.seed(client, names)
    row.add(one.name, {"bytes/session": (int(client.info("memory")["used_memory"]) - before) / one.size})
    if isinstance(one.peer, Gateway):
        await openloop.each(one.peer.port, [attach(session, "p0") for session in one.asked], OPENING_AT_ONCE)


def copy_ledger(store: redis.Redis, prefix: str, names: Sequence[str]) -> None:
    """The ledgers of two sessions that the gateway has opened itself, under all these names."""

    def key(session_id: str) -> str:
        return f"{prefix}:{{{bucket_of(session_id)}}}:s:{session_id}"

    patterns = {kind: store.dump(key(session_id)) for kind, session_id in PATTERNS.items()}
    pipeline = store.pipeline(transaction=False)
    for number, session_id in enumerate(names):
        pipeline.restore(key(session_id), RETENTION_MS, patterns[session_id[0]], replace=True)
        if number % 10_000 == 9_999:
            pipeline.execute()
    pipeline.execute()


Work = Callable[[Bench], Awaitable[None]]


def _saturation(name: str) -> Work:
    return lambda bench: saturation(bench, name)


ROWS: Final[dict[str, Work]] = {
    **{name: _saturation(name) for name in MIXES},
    "latency": latency,
    "bodies": bodies,
    "idle": idle,
    "sessions": sessions,
    "start": start,
}


def pin_harness() -> None:
    """The harness runs where the load does."""
    os.sched_setaffinity(0, {LOAD_CORE})
