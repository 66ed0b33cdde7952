"""Many clients at once, each on a connection of its own, each sending its next request behind the answer to the last.

    python -m tests.hostile.crowd PORT CONNECTIONS < one request

As a command it sends that one request over and over, so that a crowd does not share its turns with whoever measures:
says "ready" once every connection has been answered, and on SIGTERM, as JSON, how often which status came.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat

CONNECTING_AT_ONCE = 200
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")


@dataclass
class Told:
    """What a crowd was answered. `unanswered`: requests whose connection ended without an answer."""

    statuses: Counter[int] = field(default_factory=Counter)
    took_seconds: list[float] = field(default_factory=list)
    unanswered: int = 0

    def p99_seconds(self) -> float:
        ordered = sorted(self.took_seconds)
        return ordered[int(len(ordered) * 0.99)]


class Asker(asyncio.Protocol):
    """One client. `ended` is set once it has no more to ask, or its connection has gone."""

    def __init__(self, requests: Iterator[bytes], told: Told) -> None:
        self._requests = requests
        self._told = told
        self._held = b""
        self._asked_at = 0.0
        self._waits = False
        self.ended = asyncio.Event()
        self.answered = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.abort()
            return
        self._waits = True
        self._asked_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._held += data
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._held, 0, end + 2)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(self._held) < size:
            return
        assert len(self._held) == size, "more than one answer to one request"
        self._told.statuses[int(self._held[9:12])] += 1
        self._told.took_seconds.append(time.perf_counter() - self._asked_at)
        self._held = b""
        self._waits = False
        self.answered.set()
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._told.unanswered += self._waits
        self.answered.set()
        self.ended.set()


async def connect(port: int, streams: Iterable[Iterator[bytes]], told: Told, source: str) -> list[Asker]:
    """A client for each stream of requests. Raises OSError where a connection is refused."""
    loop = asyncio.get_running_loop()
    places = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def one(requests: Iterator[bytes]) -> Asker:
        async with places:
            _, asker = await loop.create_connection(
                lambda: Asker(requests, told), "127.0.0.1", port, local_addr=(source, 0)
            )
        return asker

    return await asyncio.gather(*map(one, streams))


async def ask_all(port: int, streams: Iterable[Iterable[bytes]], source: str = "127.0.0.1") -> Told:
    """Every stream on a connection of its own, all at once, to their ends."""
    told = Told()
    for asker in await connect(port, map(iter, streams), told, source):
        await asker.ended.wait()
    return told


async def hammer(port: int, connections: int, request: bytes) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    told = Told()
    askers = await connect(port, [repeat(request)] * connections, told, "127.0.0.1")
    for asker in askers:
        await asker.answered.wait()
    print("ready", flush=True)
    await stop.wait()
    print(json.dumps({"statuses": told.statuses, "unanswered": told.unanswered}), flush=True)


if __name__ == "__main__":
    asyncio.run(hammer(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer.read()))
