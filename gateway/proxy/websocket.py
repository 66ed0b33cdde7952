"""WebSocket connections (RFC 6455): the handshake is forwarded, and then bytes go both ways until either side
ends.

The gateway speaks no WebSocket itself. Subprotocols, extensions, message sizes, pings, close codes and
reasons are agreed and exchanged between client and upstream, so none of them can be changed or limited on the
way. A connection that is lost on one side is ended on the other, which sees what it would have seen without a
gateway: an abnormal closure (1006) where no close frame had come through.

After the 101 both transports get a protocol of this module instead of aiohttp's (`set_protocol`, asyncio's
own interface for it). Rejected: relaying messages through aiohttp's WebSocket classes, which would negotiate
compression anew with either side, hold whole messages in memory and need a limit on their size.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.client_reqrep import ClientResponse

from gateway.errors import UpstreamUnreachable
from gateway.proxy.answer import PATIENT, Answer, Closing, Patience, answer_fields, never, reset, status_line
from gateway.proxy.forward import Fields, ask, outgoing
from gateway.proxy.watch import Cut, Interrupted, Watch, probe, untaken

_SWITCH = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def wants_websocket(request: web.BaseRequest) -> bool:
    """Whether this is a WebSocket handshake. Any other Upgrade is an offer that may be ignored (RFC 9110
    section 7.8): such a request is forwarded like every other."""
    if request.method != "GET" or request.version < (1, 1) or request.body_exists:
        return False
    options = request.headers.get("Connection", "").lower().split(",")
    return "upgrade" in [option.strip() for option in options] and _is_websocket(request.headers.get("Upgrade"))


async def tunnel(
    request: web.BaseRequest,
    http: aiohttp.ClientSession,
    upstream_url: str,
    *,
    target: str,
    headers: Fields,
    patience: Patience = PATIENT,
    closing: Closing = never,
) -> Answer:
    """Pass a handshake on, and then everything that follows. What the upstream answers instead of 101 goes to
    the client unchanged, as `forward` does it; so do the errors and the meaning of the arguments.

    Cancelling it closes both connections, behind what has come through so far.
    """
    answer = Answer(request, closing=closing)
    fields = outgoing(request, headers)
    fields["Connection"] = "Upgrade"
    fields["Upgrade"] = "websocket"
    upstream: ClientResponse | None = None
    try:
        async with Watch(request.transport) as watch:
            upstream = await ask(http, request, upstream_url + target, fields)
            if upstream.status != 101:
                await answer.relay(upstream, watch, patience)
                return answer
        return await _switch(request, upstream, answer, patience)
    except Interrupted as interrupted:
        return answer.cut(interrupted.cut)
    finally:
        if upstream is not None:
            upstream.close()


async def _switch(request: web.BaseRequest, upstream: ClientResponse, answer: Answer, patience: Patience) -> Answer:
    """Hand the 101 on, and join the two connections until both are gone."""
    if not _is_websocket(upstream.headers.get("Upgrade")):
        raise UpstreamUnreachable("The upstream changed to another protocol than it was asked for.")
    fields = b"".join([b"%b: %b\r\n" % field for field in answer_fields(upstream)])
    head = status_line(upstream, request.version) + fields + _SWITCH
    connection = upstream.connection
    client = request.transport
    if client is None or client.is_closing():
        return answer.cut(Cut.client_gone)
    if connection is None or connection.protocol is None or connection.transport is None:
        raise UpstreamUnreachable("The upstream closed the connection as soon as it had changed the protocol.")
    answer.start(upstream)
    answer.force_close()
    early_from_client = _Early()
    early_from_upstream = _Early()
    request.protocol.set_parser(early_from_client)  # type: ignore[arg-type]
    connection.protocol.set_parser(early_from_upstream, None)
    here, there = _join(client, connection.transport, patience.stall_seconds)
    try:
        here.send(head + early_from_upstream.data)
        there.send(early_from_client.data)
        await here.lost
        await there.lost
    finally:
        here.end(abruptly=False)
        there.end(abruptly=False)
    return answer


def _is_websocket(upgrade: str | None) -> bool:
    return upgrade is not None and upgrade.isascii() and upgrade.strip().lower() == "websocket"


class _Early:
    """What came behind the handshake before the ends were joined. In the form of aiohttp's WebSocket reader,
    to which aiohttp hands those bytes."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """The protocol's own `connection_lost` tells."""


def _join(one: asyncio.Transport, other: asyncio.Transport, stall_seconds: float) -> tuple[_End, _End]:
    here, there = _End(one, stall_seconds), _End(other, stall_seconds)
    here.peer, there.peer = there, here
    for end in (here, there):
        probe(end.transport)
        end.transport.set_protocol(end)
    return here, there


class _End(asyncio.Protocol):
    """One end of a tunnel. What it receives is written to its peer; while this end's peer of the network
    takes nothing, the other end is not read.

    aiohttp's protocol stays in charge of its connection's book-keeping and learns how it fares, but gets no
    data.
    """

    peer: _End

    def __init__(self, transport: asyncio.Transport, stall_seconds: float) -> None:
        self.transport = transport
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inner: Any = transport.get_protocol()
        self._stall_seconds = stall_seconds
        self._stalled: asyncio.TimerHandle | None = None

    def send(self, data: bytes) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def end(self, *, abruptly: bool) -> None:
        """Close behind what was written, or at once. A peer that does not take what was written is not waited
        for longer than a stall may last."""
        if self.lost.done():
            return
        if abruptly:
            reset(self.transport)
        elif not self.transport.is_closing():
            self.transport.close()
            self._expect_progress()

    def data_received(self, data: bytes) -> None:
        self.peer.send(data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._inner.pause_writing()
        self._expect_progress()
        if not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
        self._progressed()
        if not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._progressed()
        self._inner.connection_lost(error)
        if not self.lost.done():
            self.lost.set_result(None)
        self.peer.end(abruptly=error is not None)

    def _expect_progress(self) -> None:
        if self._stalled is None:
            self._look_again(untaken(self.transport))

    def _look_again(self, before: int) -> None:
        self._stalled = asyncio.get_running_loop().call_later(self._stall_seconds, self._look, before)

    def _look(self, before: int) -> None:
        """Whether the network's peer has taken something since."""
        left = untaken(self.transport)
        if left < before:
            self._look_again(left)
        else:
            self.end(abruptly=True)

    def _progressed(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
