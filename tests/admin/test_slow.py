"""Who connects to the admin port and does nothing there holds few places, and none for long."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.admin import server
from gateway.admin.guard import MAX_CONNECTIONS
from gateway.admin.together import Together
from gateway.config import Listen
from gateway.telemetry import Telemetry

HEADER_SECONDS = 0.5
LISTEN = Listen(admin_port=0, header_timeout_seconds=HEADER_SECONDS, stall_seconds=0.5)
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: admin\r\n\r\n"
SLOW = REQUEST[:-2] + b"X-Slow: "
PATIENCE_SECONDS = 15.0


@pytest.fixture
async def admin(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """That of one gateway, or of several workers."""
    if getattr(request, "param", "one") == "one":
        one = await server.start(LISTEN, Telemetry(), {}, lambda: False)
        yield one
        await one.close()
        return
    together = Together({"0": Path("/nowhere/0.sock")}, lambda: False)
    await together.start(LISTEN)
    yield together
    await together.close()


class Peer:
    """One connection that sends `begin`, and `drip` again and again until it is cut."""

    def __init__(self, port: int, begin: bytes, drip: bytes) -> None:
        self._port = port
        self._begin = begin
        self._drip = drip
        self.answer = b""

    async def until_cut(self) -> float:
        """How many seconds it was let stay."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with suppress(ConnectionError):
            writer.write(self._begin)
            while not reader.at_eof():
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        self.answer += await reader.read(65_536)
                writer.write(self._drip)
        writer.transport.abort()
        return loop.time() - began


@pytest.mark.parametrize(
    ("admin", "begin", "drip"),
    [
        ("one", b"", b""),
        ("workers", b"", b""),
        ("one", SLOW, b"x"),
        ("one", REQUEST[:-2] + b"Content-Length: 100000\r\n\r\n", b"x"),
        ("one", REQUEST, b""),
        ("one", REQUEST + SLOW, b"x"),
    ],
    ids=["silent", "workers", "header", "body", "idle", "second header"],
    indirect=["admin"],
)
async def test_slow_clients_have_a_bound_and_their_places_come_back(admin: Any, begin: bytes, drip: bytes) -> None:
    more = 20
    peers = [Peer(admin.port, begin, drip) for _ in range(MAX_CONNECTIONS + more)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        stayed = await asyncio.gather(*(peer.until_cut() for peer in peers))
    assert sum(seconds >= HEADER_SECONDS for seconds in stayed) == MAX_CONNECTIONS
    if REQUEST[-4:] in begin:
        assert sum(peer.answer.startswith(b"HTTP/1.1 200 ") for peer in peers) == MAX_CONNECTIONS
    last = Peer(admin.port, REQUEST[:-2] + b"Connection: close\r\n\r\n", b"")
    await last.until_cut()
    assert last.answer.endswith(b'{"status":"ok"}')


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends stalled connections")
async def test_who_reads_nothing_loses_its_place(admin: Any) -> None:
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", admin.port))
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(ConnectionError):
            await loop.sock_sendall(sock, REQUEST * 1_000_000)
    sock.close()
