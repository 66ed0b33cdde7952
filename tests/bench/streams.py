"""Large bodies and idle clients, on plain sockets so that the client costs little."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, cast

LIMIT_SECONDS: Final = 60.0
CHUNK: Final = bytes(262_144)
END_OF_HEADERS: Final = b"\r\n\r\n"
HEAD_BYTES: Final = 8_192


class Held(asyncio.Protocol):
    """A connection: its first bytes (`head`), and how many came in all."""

    def __init__(self) -> None:
        self.head = b""
        self.received = 0
        self._enough: Callable[[], bool] = lambda: False
        self._waiting: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if len(self.head) < HEAD_BYTES:
            self.head += data[:HEAD_BYTES]
        if self._waiting is not None and not self._waiting.done() and self._enough():
            self._waiting.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        self._writable.set()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(f"closed after {self.received} bytes"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def until(self, enough: Callable[[], bool]) -> None:
        self._enough = enough
        if not enough():
            self._waiting = asyncio.get_running_loop().create_future()
            await asyncio.wait_for(self._waiting, LIMIT_SECONDS)

    async def send(self, left: int) -> None:
        while left and not self._gone.is_set():
            self.transport.write(CHUNK[:left])
            left -= min(left, len(CHUNK))
            await self._writable.wait()

    async def close(self) -> None:
        self.transport.abort()
        await self._gone.wait()

    def expect(self, status: bytes) -> None:
        line = self.head.split(b"\r\n", 1)[0]
        if line.split(b" ")[1:2] != [status]:
            raise RuntimeError(f"expected {status.decode()}, got {line.decode('latin-1')}")


async def _open(port: int, text: str) -> Held:
    _, held = await asyncio.get_running_loop().create_connection(Held, "127.0.0.1", port)
    held.transport.write(text.replace("\n", "\r\n").encode())
    return held


async def download(port: int, size: int) -> float:
    """Seconds."""
    begun = time.perf_counter()
    held = await _open(port, f"GET /bytes/{size} HTTP/1.1\nHost: bench.test\n\n")
    await held.until(lambda: held.received >= size + 1 and held.received >= size + held.head.find(END_OF_HEADERS) + 4)
    took = time.perf_counter() - begun
    held.expect(b"200")
    await held.close()
    return took


async def upload(port: int, size: int) -> float:
    """Seconds."""
    begun = time.perf_counter()
    text = (
        f"POST /upload HTTP/1.1\nHost: bench.test\nContent-Type: application/octet-stream\nContent-Length: {size}\n\n"
    )
    held = await _open(port, text)
    await held.send(size)
    await held.until(lambda: b"}" in held.head)
    took = time.perf_counter() - begun
    held.expect(b"200")
    if f'"received":{size}}}'.encode() not in held.head:
        raise RuntimeError(f"the upstream did not get {size} bytes: {held.head!r}")
    await held.close()
    return took


async def open_events(port: int, session_id: str) -> Held:
    """A client of server-sent events, once its stream has begun."""
    text = f"GET /live/sessions/{session_id}/events HTTP/1.1\nHost: bench.test\nX-Account-Id: a-{session_id}\n\n"
    held = await _open(port, text)
    await held.until(lambda: b": open" in held.head)
    held.expect(b"200")
    return held


async def open_socket(port: int, session_id: str) -> Held:
    """A WebSocket, once it is open."""
    text = (
        f"GET /live/sessions/{session_id}/socket HTTP/1.1\nHost: bench.test\nX-Account-Id: a-{session_id}\n"
        "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n"
    )
    held = await _open(port, text)
    await held.until(lambda: END_OF_HEADERS in held.head)
    held.expect(b"101")
    return held
