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
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

import httptools
from msgspec import Struct

from gateway import tls
from gateway.config import Upstream
from gateway.errors import Overloaded, UpstreamTimeout, UpstreamUnreachable
from gateway.tasks import within
from gateway.upstream.places import Places, Share

MAX_OVERHEAD_BYTES = 65_536
"""Of an answer, all that is not its body: status line, fields, chunk sizes, interim answers, trailers. As many bytes as
the body has may come on top, for a body in tiny chunks."""

_VERSIONS = frozenset(("1.0", "1.1"))
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_MEANT_TO_HAVE_A_BODY = frozenset(("POST", "PUT", "PATCH"))


class NotSent(UpstreamUnreachable):
    """No connection: nothing was sent."""


class UpstreamAnswer(Struct, gc=False):
    """The upstream's answer, whole. `headers` as they came, in order."""

    status: int
    phrase: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection; at most one request at a time.

    Each phase has its limit: the upstream may stand still for `stall_seconds` in taking the request and between the
    bytes of its answer, and has `response_timeout_seconds` for all of it.
    """

    def __init__(self, limits: Upstream) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = self._heard = 0.0
        self._unsent = 0
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
        self._waiter = self._loop.create_future()
        self._transport.write(request)
        self._unsent = self._transport.get_write_buffer_size()
        self._deadline = self._loop.time() + self._limits.response_timeout_seconds
        first = min(self._limits.stall_seconds, self._limits.response_timeout_seconds)
        self._timer = self._loop.call_later(first, self._look)
        return self._waiter

    def _look(self) -> None:
        """Whether the exchange still moves; looked at again when it might not."""
        assert self._transport is not None
        now, stall = self._loop.time(), self._limits.stall_seconds
        before, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        again = now + stall
        if now >= self._deadline:
            limit = self._limits.response_timeout_seconds
            return self._fail(UpstreamTimeout(f"The upstream did not answer within {limit} s."))
        if self._head_done:
            again = self._heard + stall
            if now >= again:
                return self._fail(UpstreamTimeout(f"The upstream's answer stopped for {stall} s."))
        elif before and before == self._unsent:
            return self._fail(UpstreamTimeout(f"The upstream took nothing of the request for {stall} s."))
        self._timer = self._loop.call_at(min(again, self._deadline), self._look)
        return None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        self._lost = True
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            self.abort()
            return
        self._heard = self._loop.time()
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
        if self._size > self._limits.max_answer_bytes:
            limit = self._limits.max_answer_bytes
            self._fail(UpstreamUnreachable(f"The upstream's answer is over {limit} bytes."))
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
        self._stop_timer()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            phrase = b"" if _CONTROL.search(self._phrase) else self._phrase
            waiter.set_result(UpstreamAnswer(status, phrase, self._headers, b"".join(self._body)))

    def _fail(self, error: UpstreamUnreachable | UpstreamTimeout) -> None:
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
    """At most `max_connections` to one upstream; at most `max_queue` requests of each route wait for one, and no longer
    than the connect time-out. `clock`: monotonic seconds. `routes`: their names, which have places to themselves.

    A request holds one of `max_connections` places (`places`) from `_acquire` to `_release`. Who has a place finds a
    kept connection, or may make one: there are never more connections than places.
    """

    def __init__(self, config: Upstream, clock: Callable[[], float], routes: Iterable[str] = ()) -> None:
        parts = urlsplit(config.url)
        self._host = parts.hostname or ""
        self._tls = tls.client(config.tls) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/").encode()
        self._host_line = b" HTTP/1.1\r\nHost: " + parts.netloc.rpartition("@")[2].encode() + b"\r\n"
        self._config = config
        self._clock = clock
        self._idle: list[_Connection] = []
        self._places = Places(routes, config.max_connections, config.max_queue)
        self._closed = False

    @property
    def connections(self) -> int:
        """How many are open, or about to be made."""
        return self._places.busy + len(self._idle)

    async def request(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes | None,
        *,
        route: str = "",
        send_by: float = math.inf,
    ) -> UpstreamAnswer:
        """Send one request, once, and read its whole answer.

        `path` is the canonical path with its query; `headers` are end-to-end ones without Host and Content-Length.
        `route`: whose places it takes. By `send_by`, on the pool's clock, the request must have left: after it, what
        was reserved for it may be somebody else's.
        Raises `NotSent` or `Overloaded` where nothing was sent; `UpstreamUnreachable` or `UpstreamTimeout` where the
        request may have been applied.
        """
        request = self._written(method, path, headers, body)
        share = self._places.share(route)
        connection = await self._acquire(share)
        try:
            if self._clock() > send_by:
                raise Overloaded("The request waited too long in this gateway to be sent on safely.")
            return await connection.send(request)
        finally:
            self._release(connection, share)

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

    async def _acquire(self, share: Share) -> _Connection:
        if not self._places.take(share):
            await self._places.wait(share, self._config.connect_timeout_seconds)
        try:
            return self._kept() or await self._connect()
        except BaseException:
            self._places.give(share)
            raise

    def _kept(self) -> _Connection | None:
        oldest = self._clock() - self._config.keepalive_seconds
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with within(self._config.connect_timeout_seconds):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._config), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            limit = self._config.connect_timeout_seconds
            raise NotSent(f"No connection to the upstream within {limit} s; see upstream.url.") from None
        except (OSError, UnicodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            raise NotSent(f"The upstream at upstream.url can't be reached: {reason}.") from None
        return connection

    def _release(self, connection: _Connection, share: Share) -> None:
        if connection.reusable and connection.usable and not self._closed:
            connection.idle_since = self._clock()
            self._idle.append(connection)
        else:
            connection.abort()
        self._places.give(share)

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
        self._idle.clear()
