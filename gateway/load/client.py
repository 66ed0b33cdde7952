"""The load's HTTP/1.1 client: keep-alive connections to one target, a callback for each answer.

Lean on purpose, so that the harness is not what it measures: no task, no request or response object per
request, one parser (httptools) per connection. A request waits for a free connection where all are busy; its
time limit runs from `send`, waiting included. Each request is sent once, and gets exactly one answer,
`status` 0 with a reason where there was none. Knows nothing of what the requests mean.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from gateway.tasks import Tasks

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
IDLE_SECONDS: Final = 10.0
"""A connection idle for longer is not used again: the server may be about to close it."""


class Answer(NamedTuple):
    """`reason` says why there was no answer (status 0): `timeout`, `connect_failed`, `connection_lost`,
    `malformed_answer`. `decision` is the gateway's own name for it, where it gave one."""

    status: int
    body: bytes = b""
    reason: str = ""
    retry_after_seconds: float = 0.0
    decision: str = ""


Done = Callable[[Answer], None]


class Exchange:
    """One request until its answer. `done` None: it is over."""

    __slots__ = ("connection", "data", "deadline", "done")

    def __init__(self, data: bytes, done: Done, deadline: float) -> None:
        self.data = data
        self.done: Done | None = done
        self.deadline = deadline
        self.connection: Connection | None = None

    def finish(self, answer: Answer) -> None:
        done, self.done = self.done, None
        self.data = b""
        self.connection = None
        if done is not None:
            done(answer)


class Connection(asyncio.Protocol):
    """One connection; at most one exchange at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._exchange: Exchange | None = None
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._size = 0
        self._retry_after = 0.0
        self._decision = ""
        self._complete = self._keep = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._client.made(self)

    def send(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.connection = self
        self._transport.write(exchange.data)

    def abort(self) -> None:
        """Give up; whatever still comes belongs to nobody."""
        self._exchange = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("malformed_answer")
            return
        if self._complete:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("connection_lost")
        self._client.gone(self)

    def _finish(self) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        answer = Answer(self._parser.get_status_code(), b"".join(self._body), "", self._retry_after, self._decision)
        self._body, self._size, self._retry_after, self._decision, self._complete = [], 0, 0.0, "", False
        if self._keep:
            self._client.free(self)
        else:
            self._transport.close()
        exchange.finish(answer)

    def _fail(self, reason: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._transport.abort()
            exchange.finish(Answer(0, reason=reason))

    # The parser's callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 11 and name.lower() == b"retry-after" and value.isdigit() and len(value) < 6:
            self._retry_after = float(value)
        elif len(name) == 19 and name.lower() == b"attachgate-decision":
            self._decision = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        self._body.append(data)

    def on_message_complete(self) -> None:
        self._complete = True
        # The parser knows only until it begins with the next message.
        self._keep = self._parser.should_keep_alive()


class Client:
    """All connections to one target. `clock` is in seconds; `expire` must be called often, since it ends what
    waits for too long."""

    def __init__(
        self, url: str, identity_header: str, connections: int, timeout_seconds: float, clock: Callable[[], float]
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        head = f"Host: {parts.netloc}\r\nUser-Agent: attachgate-load\r\n{identity_header}: "
        self._head = head.encode()
        self._most = connections
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening = 0
        self._queue: deque[Exchange] = deque()
        self.queued = 0
        """Requests that found no idle connection."""
        self.longest_wait_seconds = 0.0
        """For a connection, of those that got one."""
        self._deadlines: deque[Exchange] = deque()
        self._tasks = Tasks("load_connections")
        self._closed: asyncio.Future[None] | None = None

    def send(self, method: str, path: str, account_id: str, body: bytes, done: Done) -> None:
        """Send now or as soon as a connection is free; `done` is called exactly once, unless the client is closed
        before."""
        kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) if body else b"\r\n"
        data = b"%b %b HTTP/1.1\r\n%b%b\r\n%b%b" % (
            method.encode(),
            path.encode(),
            self._head,
            account_id.encode(),
            kind if body or method in ("GET", "DELETE") else b"Content-Length: 0\r\n\r\n",
            body,
        )
        exchange = Exchange(data, done, self._clock() + self._timeout_seconds)
        self._deadlines.append(exchange)
        if (connection := self._take()) is not None:
            connection.send(exchange)
        else:
            self.queued += 1
            self._queue.append(exchange)
            self._open_more()

    def expire(self) -> None:
        """Ends what has waited for too long; its connection can't be used again."""
        now, deadlines = self._clock(), self._deadlines
        while deadlines and (deadlines[0].done is None or deadlines[0].deadline <= now):
            exchange = deadlines.popleft()
            if exchange.done is None:
                continue
            if exchange.connection is not None:
                exchange.connection.abort()
            exchange.finish(Answer(0, reason="timeout"))

    async def close(self) -> None:
        """Returns when every connection is closed. What still waits for an answer gets none."""
        self._most = 0
        await self._tasks.cancel()
        if self._all:
            self._closed = asyncio.get_running_loop().create_future()
            for connection in list(self._all):
                connection.abort()
            await self._closed

    def free(self, connection: Connection) -> None:
        """A connection that has done its work takes the next request, or rests."""
        if (waiting := self._next_waiting()) is not None:
            connection.send(waiting)
        else:
            connection.idle_since = self._clock()
            self._idle.append(connection)

    def made(self, connection: Connection) -> None:
        self._all.add(connection)

    def gone(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._closed is not None and not self._all and not self._closed.done():
            self._closed.set_result(None)
        self._open_more()

    def _take(self) -> Connection | None:
        """The connection used last: those that are not needed grow old and are let go."""
        if not self._idle:
            return None
        connection = self._idle.pop()
        if self._clock() - connection.idle_since < IDLE_SECONDS:
            return connection
        for old in (connection, *self._idle):
            old.abort()
        self._idle.clear()
        return None

    def _next_waiting(self) -> Exchange | None:
        while self._queue:
            exchange = self._queue.popleft()
            if exchange.done is not None:
                waited = self._clock() + self._timeout_seconds - exchange.deadline
                self.longest_wait_seconds = max(self.longest_wait_seconds, waited)
                return exchange
        return None

    def _open_more(self) -> None:
        while len(self._queue) > self._opening and len(self._all) + self._opening < self._most:
            self._opening += 1
            self._tasks.start(self._open())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        connection = Connection(self)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await loop.create_connection(lambda: connection, self._host, self._port, ssl=self._ssl)
        except (OSError, TimeoutError):
            self._opening -= 1
            # Made just as the time was up: uvloop closes it, and tells nobody.
            self._all.discard(connection)
            if (waiting := self._next_waiting()) is not None:
                waiting.finish(Answer(0, reason="connect_failed"))
            self._open_more()
            return
        except asyncio.CancelledError:
            self._all.discard(connection)
            raise
        self._opening -= 1
        if connection in self._all:
            self.free(connection)
        else:
            self._open_more()
