"""A TCP proxy between two parts, whose connections can be cut, refused, stalled and slowed at will.

Bytes pass as they come. While a link is stalled or slow they wait and are then delivered, also where the sender has
gone meanwhile: that is a packet that arrives late. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Literal, cast

from gateway.tasks import Tasks

CONNECT_SECONDS: Final = 1.0
RELISTEN_SECONDS: Final = 0.02
TICK_SECONDS: Final = 0.001
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024

Direction = Literal["request", "answer"]
"""`request`: from whoever connected to this link; `answer`: back."""


class _Side(asyncio.Protocol):
    """One of the two connections of a pair."""

    def __init__(self, pair: _Pair, sends: Direction) -> None:
        self._pair = pair
        self._sends: Direction = sends
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._pair.made(self._sends)

    def data_received(self, data: bytes) -> None:
        self._pair.received(self._sends, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pair.lost(self._sends)


class _Pair:
    """A connection to the link and its continuation to the target."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.near = _Side(self, "request")
        self.far = _Side(self, "answer")
        self._waiting: dict[Direction, deque[tuple[float, bytes]]] = {"request": deque(), "answer": deque()}
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._gone: set[Direction] = set()
        self._dead = False

    def made(self, sends: Direction) -> None:
        if sends == "request":
            self._link.opened(self)
        elif self._dead:
            self.abort()
        else:
            self.flush()

    def received(self, sends: Direction, data: bytes) -> None:
        if self._dead:
            return
        part = self._link.cuts(sends)
        if part is not None:
            self._write(sends, data[: int(part * len(data))])
            self.end()
            return
        waiting, delay = self._waiting[sends], self._link.delay_seconds
        if not waiting and delay == 0 and not self._link.is_stalled(sends) and self._receiver(sends) is not None:
            self._write(sends, data)
            return
        waiting.append((asyncio.get_running_loop().time() + delay, data))
        self._waiting_bytes += len(data)
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self.abort()
        elif delay > 0:
            self._flush_in(delay)

    def _flush_in(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds + TICK_SECONDS, self.flush)

    def _receiver(self, sends: Direction) -> asyncio.Transport | None:
        return (self.far if sends == "request" else self.near).transport

    def _write(self, sends: Direction, data: bytes) -> None:
        receiver = self._receiver(sends)
        if receiver is not None and not receiver.is_closing():
            receiver.write(data)

    def flush(self) -> None:
        """Deliver what has waited long enough, and end what has nothing more to deliver."""
        now = asyncio.get_running_loop().time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for sends in ("request", "answer"):
            waiting = self._waiting[sends]
            if not self._dead and not self._link.is_stalled(sends) and self._receiver(sends) is not None:
                # Whatever comes after what waits, waits too: bytes never overtake each other.
                while waiting and waiting[0][0] <= now:
                    data = waiting.popleft()[1]
                    self._waiting_bytes -= len(data)
                    self._write(sends, data)
                if waiting:
                    self._flush_in(waiting[0][0] - now)
        self._close_where_done()

    def lost(self, sends: Direction) -> None:
        self._gone.add(sends)
        self._close_where_done()

    def _close_where_done(self) -> None:
        """One side is gone: the other goes once it has had what was meant for it."""
        for sends in list(self._gone):
            if not self._waiting[sends]:
                other: Direction = "answer" if sends == "request" else "request"
                receiver = self._receiver(sends)
                if receiver is not None:
                    receiver.close()
                if other in self._gone:
                    self._dead = True
                    self._link.closed(self)

    def end(self) -> None:
        """What was written still arrives; nothing else does."""
        self._dead = True
        for side in (self.near, self.far):
            if side.transport is not None:
                side.transport.close()
        self._link.closed(self)

    def abort(self) -> None:
        self._dead = True
        for side in (self.near, self.far):
            if side.transport is not None:
                side.transport.abort()
        self._link.closed(self)


class Link:
    """`name` for the record; `port` is its own, `target` that of whom it leads to, both on the loopback."""

    def __init__(self, name: str, port: int, target: int) -> None:
        self.name = name
        self.port = port
        self.target = target
        self.delay_seconds = 0.0
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._stalled: set[Direction] = set()
        self._cuts: dict[Direction, tuple[int, float]] = {}
        self._tasks = Tasks(f"link {name}")

    async def start(self) -> None:
        await self._listen()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Pair(self).near, "127.0.0.1", self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await self._tasks.cancel()

    # What the pairs ask

    def opened(self, pair: _Pair) -> None:
        self._pairs.add(pair)
        self._tasks.start(self._connect(pair))

    async def _connect(self, pair: _Pair) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().create_connection(lambda: pair.far, "127.0.0.1", self.target)
        except (OSError, TimeoutError):
            pair.abort()

    def closed(self, pair: _Pair) -> None:
        self._pairs.discard(pair)

    def is_stalled(self, sends: Direction) -> bool:
        return sends in self._stalled

    def cuts(self, sends: Direction) -> float | None:
        """Whether the connection ends here, and then how much of the bytes still goes through."""
        left, part = self._cuts.get(sends, (0, 0.0))
        if left == 0:
            return None
        self._cuts[sends] = (left - 1, part)
        return part

    # Faults

    def cut(self) -> int:
        """Abort every connection; how many there were."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.abort()
        return len(pairs)

    async def refuse(self, seconds: float) -> None:
        """Nobody listens for so long; what was open is cut."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self.cut()
        try:
            await asyncio.sleep(seconds)
        finally:
            while True:
                try:
                    await self._listen()
                    break
                except OSError:
                    await asyncio.sleep(RELISTEN_SECONDS)

    async def stall(self, seconds: float, directions: set[Direction]) -> None:
        """Nothing arrives for so long, and then all of it."""
        self._stalled |= directions
        try:
            await asyncio.sleep(seconds)
        finally:
            self._stalled -= directions
            for pair in list(self._pairs):
                pair.flush()

    async def slow(self, seconds: float, delay_seconds: float) -> None:
        """Everything arrives so much later."""
        self.delay_seconds = delay_seconds
        try:
            await asyncio.sleep(seconds)
        finally:
            self.delay_seconds = 0.0

    async def cut_next(self, direction: Direction, count: int, part: float, seconds: float) -> None:
        """Of the next so many chunks in a direction, if they come in time, only a part arrives, and their connections
        end."""
        self._cuts[direction] = (count, part)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._cuts.pop(direction, None)
