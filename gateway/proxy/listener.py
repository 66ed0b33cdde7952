"""The public listener: aiohttp's low-level server, with a limit on connections, and a fair turn for each session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.config import Listen
from gateway.errors import GatewayError, Overloaded, TooManyRequests
from gateway.proxy.connection import Connection, Handler
from gateway.proxy.fast import FastLane, PlainIncoming
from gateway.proxy.turns import Turns
from gateway.tasks import Tasks

BEGUN_A_TURN = 64
"""Plain requests: some milliseconds of work. Fewer would make more and smaller writes to Redis of one."""
BEGUN_OF_A_SESSION = 8
"""Of these. Who hammers one session makes the turns short."""
MAX_QUIET_SECONDS = 1.0
QUIET_SHARE = 0.1


class Listener(web.Server):
    """Makes connections. `refused` is told of what never became a request; `closing` says whether connections end with
    their answer now."""

    def __init__(
        self,
        handler: Handler,
        fast: FastLane,
        listen: Listen,
        peer_connections: int,
        refused: Callable[[GatewayError], None],
        closing: Callable[[], bool],
    ) -> None:
        self._options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": listen.keepalive_seconds,
            "max_headers": listen.max_headers,
            "max_field_size": listen.max_header_bytes,
            "max_line_size": listen.max_header_bytes,
            "lingering_time": 2.0,
        }
        super().__init__(handler, **self._options)
        self.fast = fast
        self.listen = listen
        self.peer_connections = peer_connections
        self._held_by: dict[str, int] = {}
        self.refused = refused
        self.closing = closing
        self.plain_requests = Tasks("plain_requests")
        self._waiting: Turns[tuple[Connection, PlainIncoming]] = Turns()
        self._turn_comes = False
        self.drain_by = 0.0
        self._none_open = asyncio.Event()

    def begin(self, connection: Connection, plain: PlainIncoming) -> None:
        """Serve the request when its session's turn comes: soon, and with the others that have come meanwhile.

        What has begun waits for Redis and the upstream several times, each time to the end of a turn of the loop. A
        turn that began all that a crowd sends would be long, and an attach would wait for many such turns; so it begins
        few, of as many sessions as there are.
        """
        self._waiting.put(plain.target, (connection, plain))
        if not self._turn_comes:
            self._turn_comes = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        for connection, plain in self._waiting.take(BEGUN_A_TURN, BEGUN_OF_A_SESSION):
            self._serve(connection, plain)
        self._turn_comes = bool(self._waiting)
        if self._turn_comes:
            self._loop.call_soon(self._turn)

    def _serve(self, connection: Connection, plain: PlainIncoming) -> None:
        if connection.transport is not None:  # Who has left meanwhile asks nothing any more.
            self.plain_requests.begin(connection.serve(plain))

    def _begin_all(self) -> None:
        while waiting := self._waiting.take(BEGUN_A_TURN, BEGUN_A_TURN):
            for connection, plain in waiting:
                self._serve(connection, plain)

    async def drain(self, seconds: float) -> None:
        """Wait for plain requests; those of aiohttp's way have until the same moment, once the runner ends them.

        A connection that is idle or new may have a request on its way, which closing it would leave without an answer:
        for `QUIET_SHARE` of the time whatever comes is answered, with the connection's end.
        """
        self.drain_by = asyncio.get_running_loop().time() + seconds
        if self._connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(MAX_QUIET_SECONDS, seconds * QUIET_SHARE)):
                    await self._none_open.wait()
        self._begin_all()
        seconds = self.drain_by - asyncio.get_running_loop().time()
        if await self.plain_requests.drain(seconds):
            await self.plain_requests.cancel()

    def admit(self, peer: str) -> bool:
        """Whether one more connection may stay; it is counted until it has `left`."""
        if len(self._connections) > self.listen.max_connections:
            self.refused(Overloaded(f"More than {self.listen.max_connections} connections."))
            return False
        held = self._held_by.get(peer, 0)
        if self.peer_connections and held >= self.peer_connections:
            self.refused(TooManyRequests(f"More than {self.peer_connections} connections of one peer."))
            return False
        self._held_by[peer] = held + 1
        return True

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if not self._connections:
            self._none_open.set()

    def left(self, peer: str) -> None:
        held = self._held_by[peer] - 1
        if held:
            self._held_by[peer] = held
        else:
            del self._held_by[peer]

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._options)
