"""One client's connection: aiohttp's handler, with a time limit on headers, its own reading of where a request ends,
and its errors as problem documents.

aiohttp parses; what it refuses is answered here, in the gateway's words, and the connection is closed. What its parser
(3.14) leaves open about where one request ends and the next begins is closed here too: see `_end_where_unclear`. What
the fast lane recognises is answered without it, and by nothing else in the meantime.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from gateway import refusals
from gateway.admission.decision import next_decision_id
from gateway.errors import UNFORESEEN, GatewayError, HeadersMalformed, HeadersTooLarge, InternalError
from gateway.proxy.answer import Whole
from gateway.proxy.fast import PlainIncoming, chunk
from gateway.proxy.incoming import UNKNOWN_PEER, ChunksRefused, address_of
from gateway.reading.framing import Framing
from gateway.site import end_when_stalled
from gateway.upstream.rest import Rest

if TYPE_CHECKING:
    from gateway.proxy.listener import Listener

log = structlog.get_logger(__name__)

MAX_HELD_BYTES = 65_536
_VERSIONS = (HttpVersion11, HttpVersion10)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = (
        *("_answered", "_body", "_busy", "_counted", "_framing", "_given", "_header_timer", "_held", "_listener"),
        *("_garbled", "_peer_ip", "_scheme"),
    )

    def __init__(self, manager: Listener, **options: Any) -> None:
        super().__init__(manager, **options)
        self._listener = manager
        self._header_timer: asyncio.TimerHandle | None = None
        self._given = self._answered = 0
        self._framing = Framing()
        self._body: StreamReader | None = None
        self._counted = False
        self._busy = self._garbled = False
        self._held = b""
        self._peer_ip = UNKNOWN_PEER
        self._scheme = "http"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._peer_ip = address_of(transport)
        self._counted = self._listener.admit(self._peer_ip)
        if not self._counted:
            self.force_close()
            return
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        end_when_stalled(transport, self._listener.listen.stall_seconds)
        self._await_headers()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        if self._counted:
            self._listener.left(self._peer_ip)
            self._counted = False
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._garbled:
            return
        if self._busy:
            self._hold(data)
            return
        framing = self._framing
        if framing.idle and self._is_idle() and not self._listener.closing():
            plain = self._listener.fast.recognise(data, self._peer_ip, self._scheme)
            if plain is not None:
                self._stop_timer()
                self._busy = True
                self._listener.begin(self, plain)
                return
        framing.feed(data)
        if framing.broken and not framing.lost:
            self._refuse_chunks()
            return
        before = len(self._messages)
        super().data_received(data)
        if len(self._messages) > before and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._give_up()
            self._fail_bodies()
        self._end_where_unclear(before)
        self._given += len(self._messages) - before
        if self._messages or self._request_in_progress:
            self._stop_timer()
        elif self._header_timer is None and self._waiter is not None:
            self._await_headers()

    def _refuse_chunks(self) -> None:
        """Before aiohttp sees what it would read: whoever waits for the body is told; nothing more is read. Behind an
        answer, aiohttp waits a moment for the end and closes."""
        assert self._body is not None
        if self._given > self._answered:
            self._body.set_exception(ChunksRefused())
        self._framing.lose()
        self._close = True

    def _give_up(self) -> None:
        """What came is no HTTP: nothing of it is kept until it is answered, neither what comes behind it (aiohttp would
        go on to read, and keep an error for each piece) nor what the error's traceback holds."""
        self._garbled = True
        error = self._messages[-1][0]
        if not isinstance(error, RawRequestMessage):
            error.exc.__traceback__ = None

    def _fail_bodies(self) -> None:
        """What came is no HTTP: whoever still waits for the rest of a body is told, which aiohttp does not do."""
        payloads = [payload for _, payload in self._messages]
        if self._current_request is not None:
            payloads.append(self._current_request.content)
        for payload in payloads:
            if not payload.is_eof():
                payload.set_exception(web.RequestPayloadError("The body is not framed as its header fields say."))

    async def _handle_request(
        self, request: web.BaseRequest, start_time: float | None, request_handler: Handler
    ) -> tuple[web.StreamResponse, bool]:
        async def in_our_version(request: web.BaseRequest) -> web.StreamResponse:
            answer = await request_handler(request)
            _answer_in_our_version(request)
            return answer

        handler = request_handler if request.version in _VERSIONS else in_our_version
        try:
            return await super()._handle_request(request, start_time, handler)
        finally:
            self._answered += 1
            if request.content.exception() is not None:
                self._lingering_time = 0.0  # There is no end to wait for, and aiohttp would log what it finds.
            if "Upgrade" in request.headers:
                # It was declined, and aiohttp has read on by itself.
                self._framing.lose()
                self._end_where_unclear(0)

    def _end_where_unclear(self, first: int) -> None:
        """Let no request be read behind one that does not end cleanly. `first`: the first message that is new.

        Behind an upgrade to what it does not speak, aiohttp drops the rest of what came with it. Behind CONNECT, what
        is a body to a proxy in front is a request to aiohttp. It keeps the last trailer of a chunked body for a field
        of the next request, which may be somebody else's where a proxy shares connections. And where our own reading of
        the framing (`reading.framing`) finds another end than aiohttp's, nobody knows what the next request is.
        """
        framing = self._framing
        if framing.trailed and not framing.lost and self._body is not None and self._body.is_eof():
            framing.lose()
            self._keep_only(first)
            self._close = True
        for place in range(first, len(self._messages)):
            message, payload = self._messages[place]
            if not isinstance(message, RawRequestMessage):
                framing.lose()
                return
            if message.upgrade and self._upgraded:
                framing.lose()
                continue
            if self._is_clear(message):
                self._body = payload
                continue
            if framing.broken:
                payload.set_exception(ChunksRefused())
            framing.lose()
            self._messages[place] = (message._replace(should_close=True), payload)
            self._keep_only(place + 1)
            return

    def _is_clear(self, message: RawRequestMessage) -> bool:
        """Whether what follows this message is known to be the next one."""
        length = message.headers.get("Content-Length", "0")
        if message.method == "CONNECT" or message.upgrade or not (length.isascii() and length.isdigit()):
            return False
        framing = self._framing
        return framing.head(int(length), message.chunked) and not framing.broken and not framing.trailed

    def _keep_only(self, count: int) -> None:
        while len(self._messages) > count:
            self._messages.pop()

    def _is_idle(self) -> bool:
        """aiohttp has answered all that it was given, and nobody waits to write."""
        return (
            self._given == self._answered
            and not self._upgraded
            and not self._paused
            and not self._close
            and not self._force_close
        )

    async def shutdown(self, timeout: float | None = None) -> None:
        """aiohttp gives a request the whole time twice, before and after it takes its body away: each gets half of what
        is left."""
        left = self._listener.drain_by - self._loop.time()
        await super().shutdown(max(left / 2, 0.01))

    def _hold(self, data: bytes) -> None:
        """What comes while a plain request is answered waits, and beyond a limit waits in the socket."""
        self._held += data
        if len(self._held) > MAX_HELD_BYTES and self.transport is not None:
            self.transport.pause_reading()

    async def serve(self, plain: PlainIncoming) -> None:
        """Answer one plain request."""
        try:
            answer, closes, rest = await self._listener.fast.answer(plain, self._listener.closing)
            if rest is not None:
                answer = await self._hand_on(answer, rest)
        except BaseException:
            # Without a whole answer, whoever waits for one must see the end.
            self.force_close()
            raise
        # One write after the other, behind the work of this turn: whoever reads on another core is then woken once.
        self._loop.call_soon(self._send, answer, closes)

    async def _hand_on(self, answer: bytes, rest: Rest) -> bytes:
        """An answer that is not small, as it comes and no faster than the client takes it, but for its end, which is
        returned. Where it breaks off, so does the connection."""
        try:
            await self._put(answer)
            async for piece in rest:
                await self._put(piece if rest.length is not None else chunk(piece))
        except ConnectionError:
            self.force_close()
        except GatewayError as error:
            log.warning("exchange_cut", why=error.detail)
            self.force_close()
        finally:
            rest.close()
        return b"" if rest.length is not None else chunk(b"")

    async def _put(self, piece: bytes) -> None:
        """Written when the client has taken what came before. Raises ConnectionError where it has gone."""
        await self._drain_helper()
        assert self.transport is not None
        self.transport.write(piece)

    def _send(self, answer: bytes, closes: bool) -> None:
        """Then comes what was held, by whichever way it takes."""
        self._busy = False
        if self.transport is None:
            return
        self.transport.write(answer)
        if closes:
            self.force_close()
            return
        self._keep_open()
        held, self._held = self._held, b""
        if len(held) > MAX_HELD_BYTES:
            self.transport.resume_reading()
        if held:
            self.data_received(held)

    def _keep_open(self) -> None:
        """The connection was used just now: aiohttp's keep-alive timer counts from here."""
        self._keepalive = True
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    def _process_keepalive(self) -> None:
        if self._busy:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    def _await_headers(self) -> None:
        limit = self._listener.listen.header_timeout_seconds
        self._header_timer = self._loop.call_later(limit, self._headers_late)

    def _headers_late(self) -> None:
        self._header_timer = None
        if not self._messages and not self._request_in_progress and not self._busy:
            self.force_close()

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp's parser refused; the dispatcher answers everything else itself."""
        error: GatewayError
        if isinstance(exc, LineTooLong):
            error = HeadersTooLarge("The request line or a header is longer than this gateway reads.")
        elif isinstance(exc, HttpProcessingError):
            first = str(exc.message).splitlines()[0] if exc.message else "not HTTP"
            error = HeadersMalformed(f"The request is not well-formed HTTP/1.1: {first[:200]}")
        else:
            error = InternalError(UNFORESEEN)
        self._listener.refused(error)
        decision_id = next_decision_id()
        problem = refusals.refuse_error(error, language=refusals.DEFAULT_LANGUAGE, decision_id=decision_id)
        status, headers, body = refusals.answer(problem, refusals.DEFAULT_LANGUAGE, error.retry_after_seconds)
        response = Whole(status=status, headers=dict(headers), body=body)
        response.headers["Attachgate-Decision"] = decision_id
        response.force_close()
        _answer_in_our_version(request)
        return response


def _answer_in_our_version(request: web.BaseRequest) -> None:
    """An answer speaks its server's version (RFC 9110 section 2.5); aiohttp would repeat the request's."""
    request._cache["version"] = HttpVersion11
