"""Requests at a fixed rate, whether or not earlier ones were answered; latency from when each was due.

The load's own client (gateway.load) sends them. Timers are a millisecond coarse, so what falls due within a tick is
sent at its beginning and counts from there.
"""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, Final

from msgspec import Struct

from gateway.load.client import Answer, Client
from tests.bench.mixes import Request

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from hdrh.histogram import HdrHistogram

TICK_SECONDS: Final = 0.001
TIMEOUT_SECONDS: Final = 5.0
CONNECTIONS: Final = 256
LONGEST_US: Final = 60_000_000
IDENTITY: Final = "X-Account-Id"


class Latency(Struct, frozen=True):
    """`failed`: answered with 5xx or not at all, whole wait counted."""

    rate: float
    count: int
    failed: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    curve: list[tuple[float, float]] = []


CURVE: Final = tuple(100 * (1 - 10 ** (-step / 8)) for step in range(29))


async def measure(port: int, requests: Sequence[Request], rate: float, seconds: float) -> Latency:
    """One run at `rate` a second, after a tenth of its time that does not count."""
    clock = time.perf_counter
    client = Client(f"http://127.0.0.1:{port}", IDENTITY, CONNECTIONS, TIMEOUT_SECONDS, time.monotonic)
    histogram: Any = HdrHistogram(1, LONGEST_US, 3)
    failed = left = 0

    def send(request: Request, due: float, counts: bool) -> None:
        def done(answer: Answer) -> None:
            nonlocal failed, left
            left -= 1
            if counts:
                histogram.record_value(max(1, round((clock() - due) * 1e6)))
                failed += answer.status == 0 or answer.status >= 500

        client.send(request.method, request.path, request.account_id, request.body, done)

    gc.collect()
    gc.disable()
    try:
        begun, number, warm = clock(), 0, seconds / 10
        source = cycle(requests)
        while (due := begun + number / rate) < begun + seconds + warm:
            now = clock()
            while due <= now + TICK_SECONDS:
                number += 1
                left += 1
                send(next(source), min(due, now), due > begun + warm)
                due = begun + number / rate
            client.expire()
            await asyncio.sleep(TICK_SECONDS)
        until = clock() + TIMEOUT_SECONDS + 1
        while left and clock() < until:
            client.expire()
            await asyncio.sleep(TICK_SECONDS)
    finally:
        gc.enable()
        await client.close()

    def at(percentile: float) -> float:
        return float(histogram.get_value_at_percentile(percentile)) / 1000

    curve = [(percentile, at(percentile)) for percentile in CURVE]
    return Latency(
        rate, histogram.get_total_count(), failed, at(50), at(99), at(99.9), histogram.get_max_value() / 1000, curve
    )


async def each(port: int, requests: Sequence[Request], at_once: int) -> list[int]:
    """Every request once, so many at a time; the statuses."""
    client = Client(f"http://127.0.0.1:{port}", IDENTITY, at_once, 30.0, time.monotonic)
    statuses: list[int] = []
    ended = asyncio.Event()
    source = iter(requests)

    def done(answer: Answer) -> None:
        statuses.append(answer.status)
        following = next(source, None)
        if following is not None:
            send(following)
        elif len(statuses) == len(requests):
            ended.set()

    def send(request: Request) -> None:
        client.send(request.method, request.path, request.account_id, request.body, done)

    try:
        for request in list(islice(source, at_once)):
            send(request)
        await asyncio.wait_for(ended.wait(), 300)
    finally:
        await client.close()
    return statuses
