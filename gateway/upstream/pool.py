"""Requests of the matched routes on lean keep-alive connections to the upstream.

Why not aiohttp's client: it sends a PUT or DELETE again when a kept connection breaks, and a replace applied twice is
answered 404 the second time, which would give a slot back that the upstream has filled; and it costs more than the rest
of the gateway together. What is needed here is small: one request, one whole answer, and certainty about what was sent.

A request is sent once, never again. `NotSent` and `Overloaded` mean that the upstream can't have seen it; any other
failure means that it may have. An answer is what came after its request, in one reading: whatever comes before, besides
or behind it ends the connection, and is never taken for the answer to the next request. It is whole, unless the asker
takes one that is not small as it comes.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from urllib.parse import urlsplit

from msgspec import Struct

from gateway import tls
from gateway.config import Upstream
from gateway.errors import Overloaded, UpstreamTimeout, UpstreamUnreachable
from gateway.tasks import within
from gateway.upstream.answer import Head, Header, Heads, Reading
from gateway.upstream.places import Places, Share
from gateway.upstream.rest import Rest

SMALL_BYTES = 262_144
"""A body of up to so many is always whole, and is judged; as many as a request may have."""
TAKER_SECONDS = 60.0
"""For so long who takes a longer one may take nothing: it waits for a client, whose patience has a limit of its own."""

UPSTREAM = "The upstream at upstream.url"
_MEANT_TO_HAVE_A_BODY = frozenset(("POST", "PUT", "PATCH"))


class NotSent(UpstreamUnreachable):
    """No connection: nothing was sent."""


class Stale(NotSent):
    """The connection, which was kept, had ended: nothing was sent."""

    def __init__(self) -> None:
        super().__init__("The upstream closed the connection before the request was sent.")


class Unanswered(UpstreamUnreachable):
    """The connection ended before anything of the answer had come: the request may have been applied."""


class UpstreamAnswer(Struct, gc=False):
    """The upstream's answer. `headers`: the end-to-end ones, as they came, in order. `rest`: what is still to come of
    the body; whoever has the answer takes or closes it."""

    status: int
    phrase: bytes
    headers: Sequence[Header]
    body: bytes
    rest: Rest | None = None


class _Connection(asyncio.Protocol):
    """One connection; at most one request at a time. `heads`: what the pool's upstream was read as so far.

    Each phase has its limit: the upstream may stand still for `stall_seconds` in taking the request and between the
    bytes of its answer, and has `response_timeout_seconds` for all of it. An answer that comes in pieces has all the
    time that it needs, so long as neither the upstream nor who takes it stands still. One timer serves all requests: it
    stays armed when an answer is there, and what it finds when it is due decides. It is never armed for later than the
    next request's first look, since the limits are the same for each.
    """

    def __init__(self, limits: Upstream, heads: Heads) -> None:
        self._limits = limits
        self._heads = heads
        self._reading = Reading(limits.max_answer_bytes)
        self._first_look_seconds = min(limits.stall_seconds, limits.response_timeout_seconds)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = self._look_at = self._heard = 0.0
        self._unsent = 0
        self._request = b""
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[UpstreamAnswer] | None = None
        self._rest: Rest | None = None
        self._streams = False
        self._answering = False
        self._lost = False
        self.idle_since = 0.0
        self.reusable = True

    @property
    def usable(self) -> bool:
        """Whether nothing speaks against sending on it. A transport that has found its peer gone is closing before it
        says so."""
        return not self._lost and self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, *, streams: bool = False) -> asyncio.Future[UpstreamAnswer]:
        """Raises `NotSent` where the connection has ended already."""
        self._streams = streams
        if not self.usable:
            raise Stale
        self.reusable = self._answering = False
        waiter = self._waiter = self._loop.create_future()
        # One write after the other, behind the work of this turn: whoever reads on another core is then woken once.
        self._request = request
        self._loop.call_soon(self._write)
        now = self._loop.time()
        self._deadline = now + self._limits.response_timeout_seconds
        self._look_at = now + self._first_look_seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._look_at, self._look)
        return waiter

    def _write(self) -> None:
        if self.usable and self._transport is not None:
            self._transport.write(self._request)
            self._unsent = self._transport.get_write_buffer_size()
            self._request = b""

    def _look(self) -> None:
        """Whether the exchange still moves; looked at again when it might not."""
        self._timer = None
        if self._waiter is None and self._rest is None:
            return
        now = self._loop.time()
        if now >= self._look_at and (problem := self._stands_still(now)):
            self._fail(UpstreamTimeout(problem))
            return
        self._timer = self._loop.call_at(self._look_at, self._look)

    def _stands_still(self, now: float) -> str | None:
        """Why not to wait any longer, or None, and then `_look_at` is when to look again."""
        assert self._transport is not None
        stall = self._limits.stall_seconds
        before, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        again = now + stall
        if self._rest is not None:
            if now >= self._rest.moved_at + (TAKER_SECONDS if self._rest.full else stall):
                return f"The upstream's answer {'was not taken' if self._rest.full else f'stopped for {stall} s'}."
            self._look_at = now + self._first_look_seconds
            return None
        if now >= self._deadline:
            return f"The upstream did not answer within {self._limits.response_timeout_seconds} s."
        if self._answering and self._reading.head_done:
            again = self._heard + stall
            if now >= again:
                return f"The upstream's answer stopped for {stall} s."
        elif before and before == self._unsent:
            return f"The upstream took nothing of the request for {stall} s."
        self._look_at = min(again, self._deadline)
        return None

    def abort(self) -> None:
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if (self._waiter is None and self._rest is None) or self._request:
            self._fail(UpstreamUnreachable("The upstream said something before it was asked."))
            return
        reading, first = self._reading, not self._answering
        if first:
            head = self._heads.of(data)
            if head is not None:
                self._finish(head, data[head.size :])
                return
            self._answering = True
            reading.begin(limited=not self._streams)
        reading.feed(data)
        if reading.done:
            if first:
                self._heads.learn(data, reading)
            self._finish(reading.head, reading.body)
            if reading.behind:
                self.abort()
        elif reading.problem:
            self._fail(UpstreamUnreachable(reading.problem))
        else:
            self._heard = self._loop.time()
            if self._streams and reading.size > SMALL_BYTES:
                self._hand_on()

    def _hand_on(self) -> None:
        """The answer is not small: what has come of it goes to who takes it."""
        piece = self._reading.take()
        if self._rest is not None:
            self._rest.put(piece)
            return
        waiter, self._waiter = self._waiter, None
        assert waiter is not None
        assert self._transport is not None
        if waiter.done():
            self.abort()
            return
        head = self._reading.head_of(keeps=False)
        self._rest = Rest(self._transport, self._reading.length, self.leave)
        waiter.set_result(UpstreamAnswer(head.status, head.phrase, head.headers, piece, self._rest))

    def leave(self) -> None:
        """Nobody wants the rest of the answer."""
        self._fail(UpstreamUnreachable("Nobody waits for the rest of the answer."))

    def _finish(self, head: Head, body: bytes) -> None:
        waiter, self._waiter = self._waiter, None
        rest, self._rest = self._rest, None
        # Where the request is not out yet, its rest would be taken for the next one.
        self.reusable = head.keeps and self._transport is not None and self._transport.get_write_buffer_size() == 0
        if waiter is not None and not waiter.done():
            waiter.set_result(UpstreamAnswer(head.status, head.phrase, head.headers, body))
        if rest is not None:
            rest.put(body)
            rest.end()

    def _fail(self, error: UpstreamUnreachable | UpstreamTimeout) -> None:
        waiter, self._waiter = self._waiter, None
        rest, self._rest = self._rest, None
        if self._request:
            error = Stale()
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        if rest is not None:
            rest.end(error)

    def eof_received(self) -> bool:
        self._lost = True
        if (self._waiter is not None or self._rest is not None) and self._answering:
            self._reading.end()
            if self._reading.done:
                self._finish(self._reading.head, self._reading.body)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        kind = UpstreamUnreachable if self._answering else Unanswered
        self._fail(kind("The upstream closed the connection before it had answered."))


class Pool:
    """At most `max_connections` to one upstream; at most `max_queue` requests of each route wait for one, and no longer
    than the connect time-out. `clock`: monotonic seconds. `routes`: their names, which have places to themselves.
    `named`: the other end, as errors call it.

    A request holds one of `max_connections` places (`places`) from `_acquire` to `_release`. Who has a place finds a
    kept connection, or may make one: there are never more connections than places.
    """

    def __init__(
        self,
        config: Upstream,
        clock: Callable[[], float],
        routes: Iterable[str] = (),
        *,
        named: str = UPSTREAM,
    ) -> None:
        self._named = named
        parts = urlsplit(config.url)
        self._host = parts.hostname or ""
        self._tls = tls.client(config.tls) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/").encode()
        self._host_line = b" HTTP/1.1\r\nHost: " + parts.netloc.rpartition("@")[2].encode() + b"\r\n"
        self._config = config
        self._clock = clock
        self._heads = Heads()
        self._idle: deque[_Connection] = deque()
        self._tidies: asyncio.TimerHandle | None = None
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
        headers: Sequence[Header],
        body: bytes | None,
        *,
        lines: bytes = b"",
        route: str = "",
        send_by: float = math.inf,
        streams: bool = False,
    ) -> UpstreamAnswer:
        """Send one request, once, and read its answer: whole, unless it `streams`. Then one of more than `SMALL_BYTES`
        comes with its `rest`, and the place is held until that is over.

        `path` is the canonical path with its query; `headers` are end-to-end ones without Host and Content-Length,
        and so are `lines`, which are ready to be sent.
        `route`: whose places it takes. By `send_by`, on the pool's clock, the request must have left: after it, what
        was reserved for it may be somebody else's.
        Raises `NotSent` or `Overloaded` where nothing was sent; `UpstreamUnreachable` or `UpstreamTimeout` where the
        request may have been applied.
        """
        request = self._written(method, path, lines, headers, body)
        share = self._places.share(route)
        connection = await self._acquire(share)
        rest: Rest | None = None
        try:
            if self._clock() > send_by:
                raise Overloaded("The request waited too long in this gateway to be sent on safely.")
            answer = await connection.send(request, streams=streams)
            rest = answer.rest
            return answer
        finally:
            if rest is None:
                self._release(connection, share)
            else:
                rest.then(partial(self._release, connection, share))

    def _written(self, method: str, path: str, ready: bytes, headers: Sequence[Header], body: bytes | None) -> bytes:
        lines = [method.encode(), b" ", self._prefix, path.encode("ascii"), self._host_line, ready]
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
        while self._idle:
            connection = self._idle.pop()
            if self._may_serve(connection):
                return connection
            connection.abort()
        return None

    def _may_serve(self, connection: _Connection) -> bool:
        return connection.usable and self._clock() - connection.idle_since < self._config.keepalive_seconds

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with within(self._config.connect_timeout_seconds):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._config, self._heads), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            limit = self._config.connect_timeout_seconds
            raise NotSent(f"{self._named} took no connection within {limit} s.") from None
        except (OSError, UnicodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            raise NotSent(f"{self._named} can't be reached: {reason}.") from None
        return connection

    def _release(self, connection: _Connection, share: Share) -> None:
        if connection.reusable and connection.usable and not self._closed:
            connection.idle_since = self._clock()
            self._idle.append(connection)
            if self._tidies is None:
                self._tidy_later()
        else:
            connection.abort()
        self._places.give(share)

    def _tidy_later(self) -> None:
        self._tidies = asyncio.get_running_loop().call_later(self._config.keepalive_seconds, self._tidy)

    def _tidy(self) -> None:
        """Let go of what nobody has needed for a while: the one that was used last is taken first, so a burst leaves
        many behind it."""
        while self._idle and not self._may_serve(self._idle[0]):
            self._idle.popleft().abort()
        self._tidies = None
        if self._idle:
            self._tidy_later()

    async def probe(self) -> None:
        """Raises `NotSent` where the upstream takes no connection. Made anew and not kept: a kept one says nothing
        about the next, and would seem fresh for having been asked."""
        connection = await self._connect()
        connection.abort()

    def close(self) -> None:
        """Let go of what is idle; what is in use ends with its request."""
        self._closed = True
        if self._tidies is not None:
            self._tidies.cancel()
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
