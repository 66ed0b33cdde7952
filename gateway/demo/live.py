"""Following a live session on the reference platform: server-sent events and a WebSocket, one message a
change.

Promises: a follower gets every change after its headers arrived, in order and once; one that reads too slowly
is cut off rather than buffered for without end. An event stream resumes from `Last-Event-ID` (WHATWG HTML,
9.2), as far back as the journal goes.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from gateway.demo.store import Entry
from gateway.tasks import Tasks

if TYPE_CHECKING:
    from gateway.demo.core import Platform

MAX_PENDING: Final = 1000
"""Changes kept for one follower that does not read."""

SSE_HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}

_CLOSE_REQUEST: Final = re.compile(r"close:(100[0-3]|100[7-9]|101[0-4]|[34][0-9]{3}):(.{0,30})", re.DOTALL)
"""Close codes that an endpoint may send (RFC 6455, 7.4); 30 characters of UTF-8 always fit a close frame."""

_encoder = msgspec.json.Encoder()


class Subscription:
    """What one follower has not read yet."""

    def __init__(self) -> None:
        self._pending: deque[Entry] = deque()
        self._news = asyncio.Event()
        self.closed = False
        self.overrun = False

    def push(self, entry: Entry) -> None:
        if len(self._pending) >= MAX_PENDING:
            self.overrun = True
            self.close()
        elif not self.closed:
            self._pending.append(entry)
            self._news.set()

    def close(self) -> None:
        self.closed = True
        self._news.set()

    async def take(self, wait_seconds: float | None) -> list[Entry]:
        """All pending changes, waiting for the first; empty when the time is up or the subscription
        closed."""
        try:
            async with asyncio.timeout(wait_seconds):
                await self._news.wait()
        except TimeoutError:
            return []
        taken = list(self._pending)
        self._pending.clear()
        if not self.closed:
            self._news.clear()
        return taken


class Hub:
    """Brings each change to the followers of its session."""

    def __init__(self) -> None:
        self._followers: dict[str, set[Subscription]] = {}

    def publish(self, entry: Entry) -> None:
        if entry.session_id is not None:
            for follower in self._followers.get(entry.session_id, ()):
                follower.push(entry)

    @contextmanager
    def follow(self, session_id: str) -> Iterator[Subscription]:
        subscription = Subscription()
        followers = self._followers.setdefault(session_id, set())
        followers.add(subscription)
        try:
            yield subscription
        finally:
            followers.discard(subscription)
            if not followers and self._followers.get(session_id) is followers:
                del self._followers[session_id]

    def close(self) -> None:
        for followers in self._followers.values():
            for follower in followers:
                follower.close()


class Live:
    """The two routes that follow a session. Their handlers are cancelled when the client leaves."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._pushing = Tasks("platform_sockets")

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/live/sessions/{session_id}/events", self.events),
            web.get("/live/sessions/{session_id}/socket", self.socket),
        ]

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Each change as an event named after its operation, its `seq` as the id, its journal entry as the
        data."""
        session_id = request.match_info["session_id"]
        store = self._platform.store
        if not store.knows(session_id):
            return _unknown(session_id)
        response = web.StreamResponse(headers=SSE_HEADERS)
        with self._platform.hub.follow(session_id) as changes:
            last = request.headers.get("Last-Event-ID", "")
            missed = store.changes_of(session_id, int(last)) if last.isascii() and last.isdigit() else iter(())
            opening = b": following\n\n" + b"".join(map(_event, missed))
            await response.prepare(request)
            await response.write(opening)
            while not changes.closed:
                taken = await changes.take(self._platform.heartbeat_seconds)
                await response.write(b"".join(map(_event, taken)) or b": heartbeat\n\n")
        return response

    async def socket(self, request: web.Request) -> web.StreamResponse:
        """Each change as the JSON text of its journal entry. Answers a text with `{"echo": text}`, binary
        with itself, and `close:CODE:REASON` by closing with that code."""
        session_id = request.match_info["session_id"]
        if not self._platform.store.knows(session_id):
            return _unknown(session_id)
        socket = web.WebSocketResponse(heartbeat=self._platform.heartbeat_seconds, autoclose=False)
        with self._platform.hub.follow(session_id) as changes:
            await socket.prepare(request)
            pushing = self._pushing.start(_push(socket, changes))
            try:
                async for message in socket:
                    if message.type is WSMsgType.BINARY:
                        await socket.send_bytes(message.data)
                    elif message.type is WSMsgType.TEXT:
                        await _answer_text(socket, message.data)
            finally:
                pushing.cancel()
            # The client's own code goes back to it (RFC 6455, 5.5.1); aiohttp by itself would answer 1000.
            await socket.close(code=socket.close_code or WSCloseCode.OK)
        return socket


def _unknown(session_id: str) -> web.Response:
    return web.json_response({"error": f"no session {session_id}"}, status=404)


async def _answer_text(socket: web.WebSocketResponse, text: str) -> None:
    if asked := _CLOSE_REQUEST.fullmatch(text):
        code, reason = asked.groups()
        await socket.close(code=int(code), message=reason.encode())
    else:
        await socket.send_json({"echo": text})


async def _push(socket: web.WebSocketResponse, changes: Subscription) -> None:
    try:
        while not changes.closed:
            for entry in await changes.take(None):
                await socket.send_str(_encoder.encode(entry).decode())
        await socket.close(code=WSCloseCode.TRY_AGAIN_LATER if changes.overrun else WSCloseCode.GOING_AWAY)
    except ConnectionError:
        # The client left; the handler learns of it by itself.
        return


def _event(entry: Entry) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (entry.seq, entry.operation.encode(), _encoder.encode(entry))
