"""Requests of the matched routes on lean keep-alive connections to the upstream.

Why not aiohttp's client: it sends a PUT or DELETE again when a kept connection breaks, and a replace applied twice is
answered 404 the second time, which would give a slot back that the upstream has filled; and it costs more than the rest
of the gateway together. What is needed here is small: one request, one whole answer, and certainty about what was sent.

A request is sent once, never again. `NotSent` and `Overloaded` mean that the upstream can't have seen it; any other
failure means that it may have.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import httptools
from msgspec import Struct

from gateway.config import Upstream
from gateway.errors import Overloaded, UpstreamTimeout, UpstreamUnreachable


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
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[UpstreamAnswer] | None = None
        self._phrase = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._size = 0
        self._ended_by_close = False
        self._finished = False
        self.reusable = True

    def send(self, request: bytes) -> asyncio.Future[UpstreamAnswer]:
        assert self.transport is not None
        self._reset()
        self.reusable = False
        self._waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiter

    def abort(self) -> None:
        self.lost = True
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(UpstreamUnreachable(f"The upstream's answer is not HTTP: {error}."))

    def on_message_begin(self) -> None:
        if self._finished:
            self.abort()

    def on_status(self, phrase: bytes) -> None:
        self._phrase = phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        names = {name.lower() for name, _ in self._headers}
        self._ended_by_close = not names & {b"content-length", b"transfer-encoding"}

    def on_body(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._limit:
            self._fail(UpstreamUnreachable(f"The upstream's answer is over {self._limit} bytes."))
        else:
            self._body.append(chunk)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._headers, self._body, self._phrase = [], [], b""
            return
        self.reusable = bool(self._parser.should_keep_alive())
        self._finish(status)

    def _finish(self, status: int) -> None:
        self._finished = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(UpstreamAnswer(status, self._phrase, self._headers, b"".join(self._body)))

    def _fail(self, error: UpstreamUnreachable) -> None:
        waiter, self._waiter = self._waiter, None
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def eof_received(self) -> bool:
        if self._waiter is not None and self._ended_by_close and not self._parser.should_upgrade():
            self._finish(self._parser.get_status_code())
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._fail(UpstreamUnreachable("The upstream closed the connection before it had answered."))


class Pool:
    """At most `max_connections` to one upstream; at most `max_queue` requests wait for one, and no longer than the
    connect time-out. `clock`: monotonic seconds."""

    def __init__(self, config: Upstream, clock: Callable[[], float]) -> None:
        parts = urlsplit(config.url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/").encode()
        self._host_line = b" HTTP/1.1\r\nHost: " + parts.netloc.rpartition("@")[2].encode() + b"\r\n"
        self._config = config
        self._clock = clock
        self._idle: list[_Connection] = []
        self._open = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    async def request(
        self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes | None
    ) -> UpstreamAnswer:
        """Send one request, once, and read its whole answer.

        `path` is the canonical path with its query; `headers` are end-to-end ones without Host and Content-Length.
        Raises `NotSent` or `Overloaded` where nothing was sent; `UpstreamUnreachable` or `UpstreamTimeout` where the
        request may have been applied.
        """
        connection = await self._acquire()
        lines = [method.encode(), b" ", self._prefix, path.encode("ascii"), self._host_line]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if body is not None:
            lines += (b"Content-Length: %d\r\n\r\n" % len(body), body)
        else:
            lines.append(b"\r\n")
        waiter = connection.send(b"".join(lines))
        limit = self._config.response_timeout_seconds
        timer = asyncio.get_running_loop().call_later(limit, _expire, connection, waiter, limit)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._release(connection)

    async def _acquire(self) -> _Connection:
        while True:
            oldest = self._clock() - self._config.keepalive_seconds
            while self._idle:
                connection = self._idle.pop()
                if not connection.lost and connection.idle_since > oldest:
                    return connection
                connection.abort()
                self._open -= 1
            if self._open < self._config.max_connections:
                self._open += 1
                try:
                    return await self._connect()
                except BaseException:
                    self._open -= 1
                    self._wake()
                    raise
            await self._wait_for_place()

    async def _wait_for_place(self) -> None:
        if len(self._queue) >= self._config.max_queue:
            limit = self._config.max_connections
            raise Overloaded(f"All {limit} upstream connections are busy, and the queue is full.")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            async with asyncio.timeout(self._config.connect_timeout_seconds):
                await place
        except TimeoutError:
            raise Overloaded(
                f"No upstream connection came free within {self._config.connect_timeout_seconds} s."
            ) from None
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._wake()
            raise
        finally:
            if not place.done():
                self._queue.remove(place)

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
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise NotSent(f"The upstream at upstream.url can't be reached: {reason}.") from None
        return connection

    def _release(self, connection: _Connection) -> None:
        if connection.reusable and not connection.lost:
            connection.idle_since = self._clock()
            self._idle.append(connection)
        else:
            connection.abort()
            self._open -= 1
        self._wake()

    def _wake(self) -> None:
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return

    async def probe(self) -> None:
        """Raises `NotSent` where the upstream takes no connection."""
        self._release(await self._acquire())

    def close(self) -> None:
        for connection in self._idle:
            connection.abort()
        self._open -= len(self._idle)
        self._idle.clear()


def _expire(connection: _Connection, waiter: asyncio.Future[UpstreamAnswer], limit_seconds: float) -> None:
    if not waiter.done():
        waiter.set_exception(UpstreamTimeout(f"The upstream did not answer within {limit_seconds} s."))
        connection.abort()
