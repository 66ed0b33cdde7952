"""What is still to come of an answer that is not small: its pieces as they arrive, no faster than they are taken."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.errors import UpstreamTimeout, UpstreamUnreachable

MAX_WAITING_BYTES = 262_144
"""With so much not taken yet, nothing more is read; one read may come on top."""


class Rest:
    """For one taker: `async for piece in rest`, then or instead `close`. Raises `UpstreamUnreachable` or
    `UpstreamTimeout` behind the last piece of an answer that broke off.

    `length`: of the whole body in bytes, None where the upstream did not say. `moved_at`: when a piece came or was
    taken last, on the loop's clock. `leave` is called where nobody wants what is still to come.
    """

    def __init__(self, transport: asyncio.Transport, length: int | None, leave: Callable[[], None]) -> None:
        self.length = length
        self._transport = transport
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._paused = self._ended = False
        self._error: UpstreamUnreachable | UpstreamTimeout | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._then: Callable[[], None] | None = None
        self.moved_at = self._loop.time()

    @property
    def full(self) -> bool:
        """Whether nothing more is read until a piece is taken."""
        return self._paused

    def __aiter__(self) -> Rest:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            await self._waiter
        piece = self._pieces.popleft()
        self._waiting_bytes -= len(piece)
        self._moved()
        return piece

    def put(self, piece: bytes) -> None:
        """The next piece has come."""
        if piece:
            self._pieces.append(piece)
            self._waiting_bytes += len(piece)
            self._moved()
            self._wake()

    def end(self, error: UpstreamUnreachable | UpstreamTimeout | None = None) -> None:
        """Nothing more comes; with an error, it broke off."""
        self._ended, self._error = True, error
        self._pause(False)
        self._wake()
        if self._then is not None:
            self._then()

    def then(self, call: Callable[[], None]) -> None:
        """Have it called when nothing more comes: now, where that is so already."""
        if self._ended:
            call()
        else:
            self._then = call

    def close(self) -> None:
        """Nobody takes any more. What has not come yet is not waited for."""
        self._pieces.clear()
        if not self._ended:
            self._leave()

    def _moved(self) -> None:
        self.moved_at = self._loop.time()
        self._pause(not self._ended and self._waiting_bytes > MAX_WAITING_BYTES)

    def _pause(self, pause: bool) -> None:
        if pause is self._paused or self._transport.is_closing():
            return
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
