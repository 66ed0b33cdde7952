"""Requests of the matched routes on lean keep-alive connections to the upstream.

Why not aiohttp's client: it sends a PUT or DELETE again when a kept connection breaks, and a replace applied twice is
answered 404 the second time, which would give a slot back that the upstream has filled; and it costs more than the rest
of the gateway together. What is needed here is small: one request, one whole answer, and certainty about what was sent.

A request is sent once, never again. `NotSent` and `Overloaded` mean that the upstream can't have seen it; any other
failure means that it may have. An answer is what came after its request, whole and in one reading: whatever comes
before, besides or behind it ends the connection, and is never taken for the answer to the next request.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import httptools
from msgspec import Struct

from gateway import tls
from gateway.config import Upstream
from gateway.errors import Overloaded, UpstreamTimeout, UpstreamUnreachable

MAX_OVERHEAD_BYTES = 65_536
"""Of an answer, all that is not its body: status line, fields, chunk sizes, interim answers, trailers. As many bytes as
the body has may come on top, for a body in tiny chunks."""

_VERSIONS = frozenset(("1.0", "1.1"))
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_MEANT_TO_HAVE_A_BODY = frozenset(("POST", "PUT", "PATCH"))


class NotSent(UpstreamUnreachable):
    """No connection: nothing was sent."""


class UpstreamAnswer(Struct):
    """The upstream's answer, whole. `headers` as they came, in order."""

    status: int
    phrase: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection; at most one request at a time."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._transport: asyncio.Transport | None = None
        self._lost = False
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[UpstreamAnswer] | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._received = 0
        self._finished = False
        self.reusable = True
        self._reset_head()

    def _reset_head(self) -> None:
        self._phrase = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_done = False
        self._ended_by_close = False

    @property
    def usable(self) -> bool:
        """Whether nothing speaks against sending on it. A transport that has found its peer gone is closing before it
        says so."""
        return not self._lost and self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> asyncio.Future[UpstreamAnswer]:
        """Raises `NotSent` where the connection has ended already."""
        if not self.usable:
            raise NotSent("The upstream closed the connection before the request was sent.")
        assert self._transport is not None
        self._reset()
        self.reusable = False
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiter

    def abort(self) -> None:
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            self.abort()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(UpstreamUnreachable("The upstream changed the protocol without having been asked to."))
        except httptools.HttpParserError as error:
            self._fail(UpstreamUnreachable(f"The upstream's answer is not HTTP: {error}."))
        if self._received - self._size > MAX_OVERHEAD_BYTES + self._size:
            self._fail(UpstreamUnreachable(f"The upstream's answer has more than {MAX_OVERHEAD_BYTES} bytes of head."))

    def on_message_begin(self) -> None:
        if self._finished:
            self.abort()

    def on_status(self, phrase: bytes) -> None:
        self._phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers go no further: they come too late to be judged with the fields."""
        if not self._head_done:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_done = True
        named = {name.lower() for name, _ in self._headers}
        self._ended_by_close = not named & {b"content-length", b"transfer-encoding"}
        codings = [value.lower() for name, value in self._headers if name.lower() == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            self._fail(UpstreamUnreachable("The upstream's answer has a transfer coding that this gateway can't undo."))
        if self._parser.get_http_version() not in _VERSIONS or self._parser.get_status_code() < 100:
            self._fail(UpstreamUnreachable("The upstream's answer is not HTTP/1.1."))

    def on_body(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._limit:
            self._fail(UpstreamUnreachable(f"The upstream's answer is over {self._limit} bytes."))
        else:
            self._body.append(chunk)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 101:
            self._fail(UpstreamUnreachable("The upstream changed the protocol without having been asked to."))
        elif status < 200:
            self._reset_head()
        else:
            # Where the request is not out yet, its rest would be taken for the next one.
            whole = self._transport is not None and self._transport.get_write_buffer_size() == 0
            self.reusable = whole and bool(self._parser.should_keep_alive())
            self._finish(status)

    def _finish(self, status: int) -> None:
        self._finished = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            phrase = b"" if _CONTROL.search(self._phrase) else self._phrase
            waiter.set_result(UpstreamAnswer(status, phrase, self._headers, b"".join(self._body)))

    def _fail(self, error: UpstreamUnreachable) -> None:
        waiter, self._waiter = self._waiter, None
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def eof_received(self) -> bool:
        self._lost = True
        if self._waiter is not None and self._head_done and self._ended_by_close:
            self._finish(self._parser.get_status_code())
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(UpstreamUnreachable("The upstream closed the connection before it had answered."))


class Pool:
    """At most `max_connections` to one upstream; at most `max_queue` requests wait for one, and no longer than the
    connect time-out. `clock`: monotonic seconds.

    A request holds one of `max_connections` places from `_acquire` to `_release`; a kept connection holds one too. A
    place that is given up goes to who has waited longest, so that nobody who comes later can take it.
    """

    def __init__(self, config: Upstream, clock: Callable[[], float]) -> None:
        parts = urlsplit(config.url)
        self._host = parts.hostname or ""
        self._tls = tls.client(config.tls) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/").encode()
        self._host_line = b" HTTP/1.1\r\nHost: " + parts.netloc.rpartition("@")[2].encode() + b"\r\n"
        self._config = config
        self._clock = clock
        self._idle: list[_Connection] = []
        self._open = 0
        self._queue: deque[asyncio.Future[_Connection | None]] = deque()
        self._closed = False

    async def request(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes | None,
        *,
        send_by: float = math.inf,
    ) -> UpstreamAnswer:
        """Send one request, once, and read its whole answer.

        `path` is the canonical path with its query; `headers` are end-to-end ones without Host and Content-Length. By
        `send_by`, on the pool's clock, the request must have left: after it, what was reserved for it may be somebody
        else's.
        Raises `NotSent` or `Overloaded` where nothing was sent; `UpstreamUnreachable` or `UpstreamTimeout` where the
        request may have been applied.
        """
        request = self._written(method, path, headers, body)
        connection = await self._acquire()
        try:
            if self._clock() > send_by:
                raise Overloaded("The request waited too long in this gateway to be sent on safely.")
            waiter = connection.send(request)
            limit = self._config.response_timeout_seconds
            timer = asyncio.get_running_loop().call_later(limit, _expire, connection, waiter, limit)
            try:
                return await waiter
            finally:
                timer.cancel()
        finally:
            self._release(connection)

    def _written(self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes | None) -> bytes:
        lines = [method.encode(), b" ", self._prefix, path.encode("ascii"), self._host_line]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if body is not None:
            lines += (b"Content-Length: %d\r\n\r\n" % len(body), body)
        elif method in _MEANT_TO_HAVE_A_BODY:
            lines.append(b"Content-Length: 0\r\n\r\n")
        else:
            lines.append(b"\r\n")
        return b"".join(lines)

    async def _acquire(self) -> _Connection:
        connection = self._kept()
        if connection is not None:
            return connection
        if self._open < self._config.max_connections:
            self._open += 1
        else:
            connection = await self._wait_for_place()
            if connection is not None and connection.usable:
                return connection
        try:
            return await self._connect()
        except BaseException:
            self._give_up(None)
            raise

    def _kept(self) -> _Connection | None:
        oldest = self._clock() - self._config.keepalive_seconds
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > oldest:
                return connection
            connection.abort()
            self._open -= 1
        return None

    async def _wait_for_place(self) -> _Connection | None:
        """A connection that came free, or None for a place to make one in."""
        limit_seconds = self._config.connect_timeout_seconds
        if len(self._queue) >= self._config.max_queue:
            limit = self._config.max_connections
            raise Overloaded(f"All {limit} upstream connections are busy, and the queue is full.")
        place: asyncio.Future[_Connection | None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            async with asyncio.timeout(limit_seconds):
                return await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self._give_up(place.result())
            else:
                with suppress(ValueError):
                    self._queue.remove(place)
            if isinstance(error, TimeoutError):
                raise Overloaded(f"No upstream connection came free within {limit_seconds} s.") from None
            raise

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._config.connect_timeout_seconds):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._config.max_answer_bytes), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            limit = self._config.connect_timeout_seconds
            raise NotSent(f"No connection to the upstream within {limit} s; see upstream.url.") from None
        except (OSError, UnicodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            raise NotSent(f"The upstream at upstream.url can't be reached: {reason}.") from None
        return connection

    def _release(self, connection: _Connection) -> None:
        if connection.reusable and connection.usable and not self._closed:
            connection.idle_since = self._clock()
            self._give_up(connection)
        else:
            connection.abort()
            self._give_up(None)

    def _give_up(self, connection: _Connection | None) -> None:
        """Hand a place on, with its connection where it has one."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(connection)
                return
        if connection is None:
            self._open -= 1
        else:
            self._idle.append(connection)

    async def probe(self) -> None:
        """Raises `NotSent` where the upstream takes no connection. Made anew and not kept: a kept one says nothing
        about the next, and would seem fresh for having been asked."""
        connection = await self._connect()
        connection.abort()

    def close(self) -> None:
        """Let go of what is idle; what is in use ends with its request."""
        self._closed = True
        for connection in self._idle:
            connection.abort()
        self._open -= len(self._idle)
        self._idle.clear()


def _expire(connection: _Connection, waiter: asyncio.Future[UpstreamAnswer], limit_seconds: float) -> None:
    if not waiter.done():
        waiter.set_exception(UpstreamTimeout(f"The upstream did not answer within {limit_seconds} s."))
        connection.abort()
