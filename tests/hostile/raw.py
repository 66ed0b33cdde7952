"""A client of bytes: sends exactly what it is told to, and reads what comes back strictly.

A gateway's answers must be as well-formed as it wants requests to be, so anything odd in them is `Garbled`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

PROMPT_SECONDS = 10.0
MAX_BYTES = 4 * 1024 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2}) [^\x00-\x08\x0a-\x1f\x7f]*")
_FIELD = re.compile(rb"([0-9A-Za-z!#$%&'*+.^_`|~-]+): *([^\x00-\x08\x0a-\x1f\x7f]*)")


class Garbled(Exception):
    """What came back is not HTTP."""


@dataclass
class Reply:
    status: int
    fields: list[tuple[str, bytes]]
    body: bytes
    old: bool = False
    """HTTP/1.0, which closes unless it says that it does not."""

    def field(self, name: str) -> str | None:
        """The one value of a field; None where there is none."""
        found = [value.decode("latin-1") for other, value in self.fields if other == name]
        if len(found) > 1:
            raise Garbled(f"{name} comes {len(found)} times")
        return found[0] if found else None

    @property
    def closes(self) -> bool:
        connection = self.field("connection")
        return connection == "close" or (self.old and connection != "keep-alive")


@dataclass
class Talk:
    """What came back on one connection: final answers in order, how many interim ones, and how it ended."""

    replies: list[Reply] = field(default_factory=list)
    interim: int = 0
    ended: bool = False


class Wire:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.interim = 0

    @classmethod
    async def open(cls, port: int, source: str = "127.0.0.1") -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0), limit=MAX_BYTES))

    async def send(self, data: bytes) -> bool:
        """False where the other side has gone."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return False
        return True

    async def reply(self, method: str = "POST") -> Reply | None:
        """The next final answer, None where the connection ended in order before one began."""
        async with asyncio.timeout(PROMPT_SECONDS):
            while True:
                found = await self._message(method)
                if found is None or found.status >= 200:
                    return found
                self.interim += 1

    async def ends(self) -> bool:
        """Whether the connection ends without another byte."""
        try:
            async with asyncio.timeout(PROMPT_SECONDS):
                rest = await self.reader.read(1)
        except ConnectionError:
            return True
        if rest:
            raise Garbled(f"bytes behind the last answer: {rest + await self.reader.read(200)!r}")
        return True

    def close(self) -> None:
        self.writer.transport.abort()

    async def _message(self, method: str) -> Reply | None:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise Garbled(f"broken off: {error.partial[:200]!r}") from None
            return None
        except ConnectionError:
            return None
        lines = head[:-4].split(b"\r\n")
        first = _STATUS_LINE.fullmatch(lines[0])
        if first is None:
            raise Garbled(f"no status line: {lines[0][:200]!r}")
        fields = []
        for line in lines[1:]:
            found = _FIELD.fullmatch(line)
            if found is None:
                raise Garbled(f"no field: {line[:200]!r}")
            fields.append((found[1].decode().lower(), found[2]))
        reply = Reply(int(first[1]), fields, b"", head.startswith(b"HTTP/1.0"))
        if reply.status >= 200 and reply.status not in (204, 304) and method != "HEAD":
            reply.body = await self._body(reply)
        return reply

    async def _body(self, reply: Reply) -> bytes:
        length, coding = reply.field("content-length"), reply.field("transfer-encoding")
        if coding is None and length is None:
            return await self.reader.read(MAX_BYTES)
        if coding is None and length is not None:
            return await self.reader.readexactly(int(length))
        if coding != "chunked" or length is not None:
            raise Garbled(f"framed as {coding} and {length}")
        pieces = []
        while size := int((await self.reader.readuntil(b"\r\n"))[:-2], 16):
            pieces.append((await self.reader.readexactly(size + 2))[:-2])
        await self.reader.readuntil(b"\r\n")
        return b"".join(pieces)


async def talk(
    port: int,
    writes: Sequence[bytes],
    answers: int,
    *,
    source: str = "127.0.0.1",
    method: str = "POST",
    last_words: bytes = b"",
) -> Talk:
    """Send each of the writes by itself, and read so many answers, or fewer where the connection ends before.

    `last_words`, a request that asks for the connection to be closed, goes out behind: its answer comes last in
    `replies`, and nothing may come behind it. So bytes that were taken for a request of their own are noticed.
    """
    wire = await Wire.open(port, source)
    told = Talk()
    try:
        for data in writes:
            if not await wire.send(data):
                break
            await asyncio.sleep(0)
        for _ in range(answers):
            reply = await wire.reply(method)
            if reply is None:
                told.ended = True
                return told
            told.replies.append(reply)
        if told.replies and told.replies[-1].closes:
            told.ended = await wire.ends()
        elif last_words:
            await wire.send(last_words)
            last = await wire.reply("GET")
            if last is None:
                told.ended = True
            else:
                told.replies.append(last)
                await wire.ends()
        return told
    finally:
        told.interim = wire.interim
        wire.close()
