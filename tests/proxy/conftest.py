"""A gateway front of nothing but `forward` and `tunnel`, raw clients and raw upstreams, all on real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from gateway.config import Upstream
from gateway.errors import GatewayError
from gateway.proxy.answer import PATIENT, Answer, Patience
from gateway.proxy.forward import client_session, forward
from gateway.proxy.websocket import tunnel, wants_websocket
from gateway.reading.headers import HeaderReader

PROMPT_SECONDS = 5.0
"""How long anything may take that should happen at once."""


@dataclass
class Peer:
    """One end of a connection, in bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> list[bytes]:
        """The lines of the next message's head."""
        data = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PROMPT_SECONDS)
        return data[:-4].split(b"\r\n")

    async def exactly(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), PROMPT_SECONDS)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        size = int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PROMPT_SECONDS), 16)
        return (await self.exactly(size + 2))[:-2]

    async def body(self) -> bytes:
        """A whole chunked body."""
        pieces = []
        while piece := await self.chunk():
            pieces.append(piece)
        return b"".join(pieces)

    async def rest(self) -> bytes:
        """Everything up to an orderly end."""
        return await asyncio.wait_for(self.reader.read(), PROMPT_SECONDS)

    async def end(self) -> str:
        """How the connection ends: `closed` or `reset`. What comes before is thrown away."""
        try:
            await self.rest()
        except ConnectionError:
            return "reset"
        return "closed"

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Front:
    """`port` of the gateway; what each request came to, in order: an answer, or the reason of an error."""

    port: int
    outcomes: asyncio.Queue[Answer | str]
    http: aiohttp.ClientSession

    async def outcome(self) -> Answer | str:
        return await asyncio.wait_for(self.outcomes.get(), PROMPT_SECONDS)


@dataclass
class Wires:
    """Starts servers and connections, and ends them with the test."""

    closing: list[Callable[[], Awaitable[object]]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    async def upstream(self, serve: Callable[[Peer], Awaitable[None]]) -> int:
        """A server of bytes: `serve` gets each connection. Returns its port."""
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await serve(Peer(reader, writer))
            except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
                pass
            except BaseException as error:
                self.errors.append(error)
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)

        async def close() -> None:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.closing.append(close)
        return int(server.sockets[0].getsockname()[1])

    async def site(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], tls: ssl.SSLContext | None = None
    ) -> int:
        """A server of aiohttp's. Returns its port."""
        server = web.Server(handler, access_log=None, auto_decompress=False, lingering_time=0)
        runner = web.ServerRunner(server, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.closing.append(runner.cleanup)
        return int(runner.addresses[0][1])

    async def front(
        self,
        upstream_port: int,
        patience: Patience = PATIENT,
        tls: ssl.SSLContext | None = None,
        **settings: object,
    ) -> Front:
        """The gateway, in front of that upstream; `settings` are those of `[upstream]`."""
        outcomes: asyncio.Queue[Answer | str] = asyncio.Queue()
        url = f"http://127.0.0.1:{upstream_port}"
        http = client_session(Upstream(url, **settings))  # type: ignore[arg-type]
        fields_of = HeaderReader("X-Account-Id")

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            try:
                headers = fields_of.read(request.raw_headers, request.version)
                fields = headers.forward + headers.content
                send = tunnel if wants_websocket(request) else forward
                answer = await send(request, http, url, target=request.raw_path, headers=fields, patience=patience)
            except GatewayError as error:
                outcomes.put_nowait(error.reason)
                response = web.Response(status=error.status, text=error.reason)
                response.force_close()
                return response
            except asyncio.CancelledError:
                outcomes.put_nowait("cancelled")
                raise
            outcomes.put_nowait(answer)
            return answer

        port = await self.site(handle, tls)
        self.closing.append(http.close)
        return Front(port, outcomes, http)

    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Peer:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))

        async def close() -> None:
            peer.writer.transport.abort()

        self.closing.append(close)
        return peer


@pytest.fixture
async def wires() -> AsyncIterator[Wires]:
    wires = Wires()
    yield wires
    for close in reversed(wires.closing):
        await close()
    assert wires.errors == []
