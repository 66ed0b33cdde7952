"""A tuned service's way to Redis: one connection, all calls of a loop turn in one write."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from pathlib import Path
from typing import Any

import hiredis

HERE = Path(__file__).parent


class Script:
    def __init__(self, name: str) -> None:
        self.text = (HERE / f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class BatchedRedis(asyncio.Protocol):
    """`connect` first. A call's future has Redis' reply, or fails with its error."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []

    async def connect(self, host: str, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport, _ = await self._loop.create_connection(lambda: self, host, port)

    def command(self, *words: str | int | bytes) -> asyncio.Future[Any]:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(words))
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    async def load(self, *scripts: Script) -> None:
        for script in scripts:
            await self.command("SCRIPT", "LOAD", script.text)

    def _flush(self) -> None:
        self._transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future = self._waiting.popleft()
            if future.cancelled():
                continue
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)
