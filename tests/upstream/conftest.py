"""A raw upstream, whose connections are served byte by byte by a function that the test gives; and pools before it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import uvloop

from gateway.config import Upstream
from gateway.upstream.pool import Pool

PROMPT_SECONDS = 5.0
"""How long anything may take that should happen at once."""


@dataclass
class Asked:
    """One request as the upstream got it."""

    line: bytes
    fields: list[bytes]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        found = (line.partition(b": ") for line in self.fields)
        return [value for field, _, value in found if field.lower() == name]


@dataclass
class Peer:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def ask(self) -> Asked | None:
        """The next request, whole; None where the connection ended."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        line, *fields = head[:-4].split(b"\r\n")
        asked = Asked(line, fields, b"")
        lengths = asked.values(b"content-length")
        if lengths:
            asked.body = await self.reader.readexactly(int(lengths[0]))
        return asked

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ended(self) -> None:
        """Until the gateway has closed the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass


Serve = Callable[[Peer], Awaitable[None]]


@dataclass
class Raw:
    """`asked` has every request that a `serve` took with `Peer.ask` through `answering`; `connections` counts."""

    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    url: str = ""
    pools: list[Pool] = field(default_factory=list)
    _servers: list[asyncio.Server] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _errors: list[BaseException] = field(default_factory=list)

    async def start(self, serve: Serve, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            self.connections += 1
            try:
                await serve(Peer(reader, writer, self.connections))
            except (asyncio.CancelledError, ConnectionError):
                pass
            except BaseException as error:
                self._errors.append(error)
            finally:
                self._tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, host, 0, ssl=tls)
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{name}:{self.port}"

    async def answering(self, *answers: bytes) -> None:
        """Answer one request after the other with these bytes on each connection, and then close it."""

        async def serve(peer: Peer) -> None:
            for answer in answers:
                asked = await peer.ask()
                if asked is None:
                    return
                self.asked.append(asked)
                await peer.send(answer)

        await self.start(serve)

    def pool(self, **settings: object) -> Pool:
        pool = Pool(Upstream(**{"url": self.url, **settings}), time.monotonic)  # type: ignore[arg-type]
        self.pools.append(pool)
        return pool

    async def quiet(self, pool: Pool) -> None:
        """Until the upstream has only the connections that the pool thinks it has."""
        await self.until(lambda: len(self._tasks) <= pool.connections)

    @staticmethod
    async def until(true: Callable[[], bool]) -> None:
        for _ in range(round(PROMPT_SECONDS / 0.001)):
            if true():
                return
            await asyncio.sleep(0.001)
        raise AssertionError("not in time")

    async def close(self) -> None:
        for pool in self.pools:
            pool.close()
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert not self._errors


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The pool runs on uvloop, or where there is none on asyncio's own: transports differ in when they do what."""
    if item.path.stem.startswith("test_pool"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    raw = Raw()
    yield raw
    await raw.close()
