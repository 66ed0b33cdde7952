"""A client behind a load balancer: keep-alive connections to several gateways, and another try where that is safe.

Tried again: where nobody listens, where a connection ends before a byte of the answer, and on 503 `draining`. That what
was not answered was not done either is for the test to see. All else is an answer, or a failure.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from typing import Any

TRIES = 40
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Lost(Exception):
    """A request that got no answer, and must not be sent again."""


class Balancer:
    """`again`: why requests were tried again, and how often."""

    def __init__(self, ports: list[int], account: str) -> None:
        self.again: Counter[str] = Counter()
        self.asked = 0
        self._account = account
        self._idle: dict[int, list[Pair]] = {port: [] for port in ports}
        self._turns = itertools.cycle(ports)
        self._writers: set[asyncio.StreamWriter] = set()

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        self.asked += 1
        data = b"" if body is None else json.dumps(body).encode()
        kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if data else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: {self._account}\r\n{kind}\r\n"
        for _ in range(TRIES):
            said = await self._once(next(self._turns), head.encode() + data)
            if isinstance(said, tuple) and not (said[0] == 503 and said[1]["reason"] == "draining"):
                return said
            self.again[said if isinstance(said, str) else "draining"] += 1
            await asyncio.sleep(0)
        raise Lost(f"{method} {path}: nobody answered; {dict(self.again)}")

    async def _once(self, port: int, request: bytes) -> tuple[int, Any] | str:
        """The answer, or why the request may be sent again."""
        idle = self._idle[port] = [pair for pair in self._idle[port] if not self._ended(pair)]
        kept = bool(idle)
        if kept:
            reader, writer = idle.pop()
        else:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
                return "refused"
            self._writers.add(writer)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError) as error:
            self._end(writer)
            begun = isinstance(error, asyncio.IncompleteReadError) and bool(error.partial)
            if not begun:
                return "closed while idle" if kept else "closed before it was accepted"
            raise Lost(f"{request[:80]!r}: {error!r}") from None
        line, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
        answer = await reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("connection") == "close":
            self._end(writer)
        else:
            idle.append((reader, writer))
        return int(line.split()[1]), json.loads(answer) if answer else None

    def _ended(self, pair: Pair) -> bool:
        if pair[0].at_eof():
            self._end(pair[1])
        return pair[0].at_eof()

    def _end(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
