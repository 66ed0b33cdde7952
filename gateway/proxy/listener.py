"""The public listener: aiohttp's low-level server, with a time limit on headers, a limit on connections, and its own
errors as problem documents.

aiohttp parses; what it refuses is answered here, in the gateway's words, and the connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from gateway import refusals
from gateway.admission.decision import next_decision_id
from gateway.config import Listen
from gateway.errors import GatewayError, HeadersMalformed, HeadersTooLarge, Overloaded

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def problem_response(error: GatewayError, language: refusals.Language, decision_id: str) -> web.Response:
    """A failure as aiohttp sends it; used where no `Decision` was made yet."""
    problem = refusals.refuse_error(error, language=language, decision_id=decision_id)
    status, headers, body = refusals.answer(problem, language, error.retry_after_seconds)
    response = web.Response(status=status, headers=dict(headers), body=body)
    response.headers["Attachgate-Decision"] = decision_id
    if error.closes:
        response.force_close()
    return response


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_header_timer", "_listener")

    def __init__(self, manager: Listener, **options: Any) -> None:
        super().__init__(manager, **options)
        self._listener = manager
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._listener.admit():
            self.force_close()
            return
        self._await_headers()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages or self._request_in_progress:
            self._stop_timer()
        elif self._header_timer is None and self._waiter is not None:
            self._await_headers()

    def _await_headers(self) -> None:
        limit = self._listener.listen.header_timeout_seconds
        self._header_timer = self._loop.call_later(limit, self._headers_late)

    def _headers_late(self) -> None:
        self._header_timer = None
        if not self._messages and not self._request_in_progress:
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
            error = HeadersMalformed("The request could not be read.")
        self._listener.refused(error)
        response = problem_response(error, refusals.DEFAULT_LANGUAGE, next_decision_id())
        response.force_close()
        return response


class Listener(web.Server):
    """Makes connections. `refused` is told of what never became a request."""

    def __init__(self, handler: Handler, listen: Listen, refused: Callable[[GatewayError], None]) -> None:
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
        self.listen = listen
        self.refused = refused

    def admit(self) -> bool:
        """Whether one more connection may stay."""
        if len(self._connections) <= self.listen.max_connections:
            return True
        self.refused(Overloaded(f"More than {self.listen.max_connections} connections."))
        return False

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._options)
