"""One exchange under watch: it is cut as soon as its client has left, or when a side is slower than allowed.

aiohttp's server does not cancel a handler whose client has gone, and a handler that waits for a silent
upstream has nothing to write, so it would not notice for hours. The watch therefore stands between the
client's transport and aiohttp's protocol (`set_protocol` is asyncio's own interface for that), passes every
event on, and ends the exchange when the connection is lost. No polling, no second task, and nothing of
aiohttp's that is private.

Rejected: `handler_cancellation=True` on the server. It cancels every handler, also those that must settle.

Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import cast


class Cut(StrEnum):
    """Why an exchange ended early."""

    client_gone = "client_gone"
    client_slow = "client_slow"
    upstream_slow = "upstream_slow"
    upstream_lost = "upstream_lost"


LOOKS = 4
"""How often, within what a taker may take, it is looked whether it has taken something."""


class Interrupted(Exception):
    """The watch ended the exchange."""

    def __init__(self, cut: Cut) -> None:
        super().__init__(cut)
        self.cut = cut


class Watch:
    """`async with Watch(transport) as watch` around everything that one exchange awaits, in one task.

    Raises `Interrupted` once the client has left, or when what `allow` gave time for has not happened.
    """

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(None)
        self._inner: asyncio.BaseProtocol | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        self._blame = Cut.upstream_slow
        self._seconds = 0.0
        self._taker: asyncio.BaseTransport | None = None
        self._untaken: int | None = None
        self._ended: Cut | None = None
        self._over = False

    async def __aenter__(self) -> Watch:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise Interrupted(Cut.client_gone)
        await self._scope.__aenter__()
        self._inner = transport.get_protocol()
        transport.set_protocol(_Overheard(cast(asyncio.Protocol, self._inner), self._client_left))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._transport is not None
        assert self._inner is not None
        self._over = True
        # A closing TLS transport of asyncio may have forgotten its protocol; ours passes on what still happens.
        if not self._transport.is_closing():
            self._transport.set_protocol(self._inner)
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            assert self._ended is not None
            raise Interrupted(self._ended) from None

    def allow(self, blame: Cut, seconds: float | None, taker: asyncio.BaseTransport | None = None) -> None:
        """Until the next call, `seconds` may pass; then `blame` is why the exchange ends. None: no limit. With a
        `taker`, time counts from the last byte that it has taken of what was written to it.

        Called for every piece that is moved, so it only notes the time: the timer looks again when it fires.
        """
        self._blame = blame
        if seconds is None:
            self._deadline = None
            return
        now = self._loop.time()
        self._deadline = now + seconds
        self._seconds, self._taker, self._untaken = seconds, taker, None
        look = self._deadline if taker is None else now + seconds / LOOKS
        if self._timer is None or self._timer.when() > look:
            self._arm(look)

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        now = self._loop.time()
        look = self._deadline
        if self._taker is not None:
            before, self._untaken = self._untaken, untaken(self._taker)
            if before is not None and self._untaken < before:
                self._deadline = now + self._seconds
            look = min(self._deadline, now + self._seconds / LOOKS)
        if now < self._deadline:
            self._arm(look)
        else:
            self._end(self._blame)

    def _client_left(self) -> None:
        self._end(Cut.client_gone)

    def _end(self, cut: Cut) -> None:
        if self._ended is None and not self._over:
            self._ended = cut
            self._scope.reschedule(self._loop.time())


class _Overheard(asyncio.Protocol):
    """Passes every event on to aiohttp's protocol, and tells when the connection was lost."""

    def __init__(self, inner: asyncio.Protocol, on_lost: Callable[[], None]) -> None:
        self._inner = inner
        self._on_lost = on_lost

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._inner.connection_lost(error)
        self._on_lost()


def untaken(transport: asyncio.BaseTransport) -> int:
    """How many bytes that were written the peer has not taken yet. Most wait in the kernel, which says so little of
    what it gets rid of that a slow reader seems to stand still; Linux tells when it is asked."""
    size = cast(asyncio.WriteTransport, transport).get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if transport.is_closing() or sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return size
    try:
        waiting: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    except OSError:
        return size
    return size + waiting


_IDLE_SECONDS = 60
_INTERVAL_SECONDS = 15
_PROBES = 4


def probe(transport: asyncio.BaseTransport) -> None:
    """Let the kernel find out within two minutes that a silent peer is dead, where no other limit holds."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE_SECONDS),
        ("TCP_KEEPINTVL", _INTERVAL_SECONDS),
        ("TCP_KEEPCNT", _PROBES),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
