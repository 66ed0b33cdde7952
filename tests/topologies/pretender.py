"""A Redis that says what the test wants: for errors that a real one gives only at odd moments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import hiredis

from gateway.tasks import Tasks

OK = b"+OK\r\n"
HELD = b"*3\r\n$4\r\nheld\r\n:1\r\n$1\r\np\r\n"

Words = list[bytes]
Answer = bytes | None | Awaitable[bytes | None]


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


@dataclass
class Pretender:
    """`answer` is asked with each command's words; None leaves it without an answer. `heard` has all but PING."""

    answer: Callable[[Words], Answer]
    port: int = 0
    heard: list[Words] = field(default_factory=list)
    connections: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: Tasks = field(default_factory=lambda: Tasks("pretender"))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def told(self, name: bytes) -> int:
        return sum(words[0] == name for words in self.heard)

    async def sees(self, true: Callable[[], bool]) -> None:
        """Until something is so that a command or a connection changes."""
        async with asyncio.timeout(5.0):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        parser = hiredis.Reader()
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                parser.feed(data)
                while (words := parser.gets()) is not False:
                    if words != [b"PING"]:
                        self.heard.append(words)
                        self.changed.set()
                    answer = self.answer(words)
                    if answer is not None and not isinstance(answer, bytes):
                        answer = await answer
                    if answer is not None:
                        writer.write(answer)
        self.writers.discard(writer)
        self.changed.set()
        writer.close()

    def hang_up(self) -> None:
        for writer in self.writers:
            writer.close()


@asynccontextmanager
async def pretending(answer: Callable[[Words], Answer]) -> AsyncIterator[Pretender]:
    one = Pretender(answer)

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one.tasks.start(one.serve(reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()
        one.hang_up()
        await one.tasks.cancel()
        await server.wait_closed()
