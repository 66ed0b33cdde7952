"""The upstream's answer on its way to the client, unchanged: status, phrase, fields and body, piece by piece.

aiohttp's own `StreamResponse` adds a Content-Type and a Server that the upstream never sent, and loses bytes
of field values that are not UTF-8. So the head is written here, from the bytes that came; aiohttp's writer
does the chunking and the waiting for a slow client.

An answer that breaks off in the middle breaks off for the client too: its connection is reset, and nothing
about it looks like an end (RFC 9112 section 8). Interim answers (1xx) go no further than this gateway, and
trailers neither.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from enum import Enum

import aiohttp
import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection
from msgspec import Struct

from gateway.errors import GatewayError, UpstreamUnreachable
from gateway.proxy.watch import Cut, Watch, probe
from gateway.upstream.rest import Rest

log = structlog.get_logger(__name__)

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_FRAMES = {b"content-length"}
"""Without it the client could not tell where the answer ends, whatever Connection says of it."""
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ADDED = frozenset(("Server", "Content-Type"))
_LENGTH = re.compile(rb"[0-9]{1,19}")
_RESET, _ORDERLY = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
"""What closing a socket does (SO_LINGER), whoever closes it."""


class Patience(Struct, frozen=True):
    """How long a side may take, in seconds. The time to connect and to the head of the answer are the
    session's.

    `body_seconds`: the client's, for the next piece of its body. `stall_seconds`: either side's, to take
    something of what waits for it. `idle_seconds`: the upstream's, for the next piece of an answer; an event
    stream may be silent for ever, since it ends when its client leaves.
    """

    body_seconds: float = 15.0
    stall_seconds: float = 60.0
    idle_seconds: float = 300.0


PATIENT = Patience()

Closing = Callable[[], bool]


def never() -> bool:
    return False


class _Framing(Enum):
    none = 0
    length = 1
    chunked = 2
    close = 3


class Stream(web.StreamResponse):
    """An answer with the fields that it was given and those of HTTP itself: aiohttp would name itself and its version
    (Server), and guess a Content-Type."""

    async def _prepare_headers(self) -> None:
        absent = [name for name in _ADDED if name not in self.headers]
        await super()._prepare_headers()
        for name in absent:
            self.headers.popall(name, None)


class Whole(Stream, web.Response):
    """The same, with its body at hand."""


class Ready(web.StreamResponse):
    """An answer as the bytes that are sent: aiohttp would take its fields for text, and write other bytes. `rest`: what
    of the body is still coming from the upstream; where it breaks off, so does the client's connection. `chunked`: it
    is sent in chunks."""

    def __init__(
        self, request: web.BaseRequest, data: bytes, *, keep_alive: bool, rest: Rest | None, chunked: bool
    ) -> None:
        super().__init__()
        self._request = request
        self._data = data
        self._keep_alive = keep_alive
        self._rest = rest
        self._in_chunks = chunked

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        writer = self._request.writer
        try:
            await writer.write(self._data)
            if self._rest is not None:
                await self._hand_on(self._rest, writer)
            await writer.write_eof()
            await writer.drain()
        except GatewayError as error:
            log.warning("exchange_cut", why=error.detail)
            if self._request.transport is not None:
                reset(self._request.transport)
        finally:
            if self._rest is not None:
                self._rest.close()

    async def _hand_on(self, rest: Rest, writer: AbstractStreamWriter) -> None:
        if self._in_chunks:
            writer.enable_chunking()
        elif rest.length is None:
            _on_closing(self._request.transport, _RESET)
        async for piece in rest:
            await writer.write(piece)
        _on_closing(self._request.transport, _ORDERLY)


class Answer(web.StreamResponse):
    """What `forward` and `tunnel` return. It has been sent already, so that aiohttp has nothing left to do
    with it.

    `failure` is why it was cut, None where it came through whole.
    """

    def __init__(self, request: web.BaseRequest, *, closing: Closing = never) -> None:
        super().__init__()
        self._request = request
        self._keep_alive = request.keep_alive
        self._closing = closing
        self.started = False
        self.failure: Cut | None = None

    @property
    def prepared(self) -> bool:
        return self.started

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None

    def cut(self, why: Cut) -> Answer:
        """Break the client's connection off."""
        self.failure = why
        self._keep_alive = False
        transport = self._request.transport
        if transport is not None and not transport.is_closing():
            reset(transport)
        if why is not Cut.client_gone:
            log.warning("exchange_cut", why=str(why), method=self._request.method, path=self._request.path)
        return self

    async def relay(self, upstream: aiohttp.ClientResponse, watch: Watch, patience: Patience) -> None:
        """Hand the whole answer on. Raises UpstreamUnreachable for one that can't be, before anything was
        sent."""
        framing = _framing(self._request, upstream)
        if framing is _Framing.close or self._closing():
            self._keep_alive = False
        head = self._head(upstream, framing)
        self.start(upstream)
        if framing is _Framing.close:
            _on_closing(self._request.transport, _RESET)  # Nothing else would say that the end came too early.
        lost = _loss_of(upstream)
        idle_seconds: float | None = patience.idle_seconds
        if upstream.headers.get("Content-Type", "").lower().startswith("text/event-stream"):
            idle_seconds = None
            _probe_both(self._request, upstream)
        with _ending_with_its_connection(upstream):
            why = await self._pump(upstream, head, framing, watch, idle_seconds, patience.stall_seconds)
        if why is None and lost is not None and lost.done() and lost.exception() is not None:
            why = Cut.upstream_lost
        if why is None:
            why = await self._finish(framing, watch, patience.stall_seconds)
        if why is not None:
            self.cut(why)
        elif framing is _Framing.close:
            _on_closing(self._request.transport, _ORDERLY)

    def start(self, upstream: aiohttp.ClientResponse) -> None:
        self.set_status(upstream.status, upstream.reason)
        self.started = True

    async def _pump(
        self,
        upstream: aiohttp.ClientResponse,
        head: bytes,
        framing: _Framing,
        watch: Watch,
        idle_seconds: float | None,
        stall_seconds: float,
    ) -> Cut | None:
        """Head and body, each piece as it arrives; a small answer with its head, in one write."""
        writer = self._request.writer
        content = upstream.content
        early = framing is _Framing.length and content.total_bytes > 0
        try:
            if not early:
                watch.allow(Cut.client_slow, stall_seconds, self._request.transport)
                await writer.write(head)
            if framing is _Framing.chunked:
                writer.enable_chunking()
            while framing is not _Framing.none:
                watch.allow(Cut.upstream_slow, idle_seconds)
                try:
                    piece = await content.readany()
                except (aiohttp.ClientError, OSError, RuntimeError):
                    return Cut.upstream_lost
                if not piece:
                    break
                if early:
                    piece, early = head + piece, False
                watch.allow(Cut.client_slow, stall_seconds, self._request.transport)
                await writer.write(piece)
        except ConnectionError:
            return Cut.client_gone
        return None

    async def _finish(self, framing: _Framing, watch: Watch, stall_seconds: float) -> Cut | None:
        watch.allow(Cut.client_slow, stall_seconds, self._request.transport)
        try:
            if framing is _Framing.chunked:
                await self._request.writer.write_eof()
            else:
                await self._request.writer.drain()
        except ConnectionError:
            return Cut.client_gone
        return None

    def _head(self, upstream: aiohttp.ClientResponse, framing: _Framing) -> bytes:
        fields = answer_fields(upstream)
        keeps_length = framing is _Framing.length or (framing is _Framing.none and upstream.status != 204)
        lines = [b"%b: %b\r\n" % field for field in fields if keeps_length or field[0].lower() != b"content-length"]
        if framing is _Framing.chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        version = self._request.version
        if not self._keep_alive:
            lines.append(b"Connection: close\r\n")
        elif version < (1, 1):
            lines.append(b"Connection: keep-alive\r\n")
        return status_line(upstream, version) + b"".join(lines) + b"\r\n"


def status_line(upstream: aiohttp.ClientResponse, version: tuple[int, int]) -> bytes:
    phrase = (upstream.reason or "").encode("utf-8", "surrogateescape")
    if _FORBIDDEN.search(phrase):
        raise UpstreamUnreachable("The upstream's reason phrase holds a control character.")
    return b"HTTP/%d.%d %d %b\r\n" % (*version, upstream.status, phrase)


def answer_fields(upstream: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """The end-to-end fields of an answer in their order (RFC 9110 section 7.6.1), and a Date where none came
    (section 6.6.1). Raises UpstreamUnreachable for bytes that a client could take for the end of a field."""
    raw = upstream.raw_headers
    left_out = _HOP_BY_HOP
    named = [value for name, value in raw if name.lower() == b"connection"]
    if named:
        left_out = left_out | {token.strip().lower() for token in b",".join(named).split(b",")} - _FRAMES
    fields = [(name, value) for name, value in raw if name.lower() not in left_out]
    if _FORBIDDEN.search(b"".join([part for field in fields for part in field])):
        raise UpstreamUnreachable("A header field of the upstream's answer holds a control character.")
    if b"date" not in {name.lower() for name, _ in fields}:
        fields.append((b"Date", formatdate(usegmt=True).encode()))
    return fields


def reset(transport: asyncio.Transport) -> None:
    """Close at once and, unless it is closing already, so that the peer can't take it for an orderly end."""
    _on_closing(transport, _RESET)
    transport.abort()


def _on_closing(transport: asyncio.Transport | None, how: bytes) -> None:
    if transport is None or transport.is_closing():
        return
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)


def _framing(request: web.BaseRequest, upstream: aiohttp.ClientResponse) -> _Framing:
    """How the body is delimited towards the client (RFC 9112 section 6.3)."""
    if request.method == "HEAD" or upstream.status in (204, 304):
        return _Framing.none
    coding = upstream.headers.get("Transfer-Encoding")
    if coding is not None and coding.strip().lower() != "chunked":
        raise UpstreamUnreachable("The upstream's answer has a transfer coding that this gateway does not know.")
    length = upstream.headers.get("Content-Length")
    if coding is None and length is not None:
        if not _LENGTH.fullmatch(length.encode("utf-8", "surrogateescape")):
            raise UpstreamUnreachable("The upstream's answer has a Content-Length that is no number.")
        return _Framing.length
    return _Framing.chunked if request.version >= (1, 1) else _Framing.close


def _loss_of(upstream: aiohttp.ClientResponse) -> asyncio.Future[None] | None:
    """What tells whether a connection was closed or reset, where the body ends with it: aiohttp ends the body in both
    cases."""
    if "Transfer-Encoding" in upstream.headers or "Content-Length" in upstream.headers:
        return None
    return _loss(upstream.connection)


@contextmanager
def _ending_with_its_connection(upstream: aiohttp.ClientResponse) -> Iterator[None]:
    """Within, who waits for more of the body is told when its connection has gone. Where a chunk is malformed, aiohttp
    closes the connection and tells nobody."""
    content = upstream.content

    def end(_: object = None) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("The answer is not framed as its header fields say."))

    lost = _loss(upstream.connection)
    if lost is None:
        end()
        yield
        return
    lost.add_done_callback(end)
    try:
        yield
    finally:
        lost.remove_done_callback(end)


def _loss(connection: Connection | None) -> asyncio.Future[None] | None:
    """Done when the connection has gone; None where it has gone already, or serves others again."""
    if connection is None or connection.protocol is None:
        return None
    lost = connection.protocol.closed
    if lost is not None:
        lost.remove_done_callback(_seen)  # Once, however many answers come on it.
        lost.add_done_callback(_seen)
    return lost


def _seen(lost: asyncio.Future[None]) -> None:
    if not lost.cancelled():
        lost.exception()


def _probe_both(request: web.BaseRequest, upstream: aiohttp.ClientResponse) -> None:
    connection = upstream.connection
    for transport in (request.transport, connection.transport if connection is not None else None):
        if transport is not None:
            probe(transport)
