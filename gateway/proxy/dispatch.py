"""Where a request goes: to an operation of a matched route, to the gateway's own view, or on to the upstream.

Everything that leaves here is an answer: an unforeseen exception becomes a problem document with its decision id, and
its traceback goes to the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from time import perf_counter

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDict

from gateway import refusals
from gateway.admission import session
from gateway.admission.answers import failure
from gateway.admission.attach import attach
from gateway.admission.decision import Decision, Header, Incoming, Reply
from gateway.admission.gate import Gate
from gateway.config import Config, Operation
from gateway.errors import Draining, GatewayError, InternalError, RouteUnknown
from gateway.policy.model import Surface
from gateway.proxy.addable import addable
from gateway.proxy.forward import forward
from gateway.proxy.incoming import AiohttpIncoming, peer_ip
from gateway.proxy.live import LiveView
from gateway.proxy.websocket import tunnel
from gateway.reading.address import Address, read_target
from gateway.reading.headers import HeaderReader, Headers, forwarding
from gateway.reading.routes import Match, Matcher

log = structlog.get_logger(__name__)

_OPERATIONS: dict[Operation, Callable[[Gate, Incoming, Decision], Awaitable[Reply]]] = {
    "attach": attach,
    "create": session.create,
    "detach": session.detach,
    "replace": session.replace,
    "start": session.start,
    "end": session.end,
}


class Dispatcher:
    def __init__(
        self, config: Config, gate: Gate, matcher: Matcher, headers: HeaderReader, http: aiohttp.ClientSession, live: LiveView
    ) -> None:
        self.gate = gate
        self._config = config
        self._matcher = matcher
        self._headers = headers
        self._http = http
        self._live = live
        self._prefix = config.listen.client_prefix
        self._long_lived: set[asyncio.Task[object]] = set()
        self.draining = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        began = perf_counter()
        decision = Decision(
            "pass", None, refusals.language(request.headers.get("Accept-Language")), self.gate.wall_clock()
        )
        closes = self.draining
        try:
            response = await self._route(request, decision)
        except GatewayError as error:
            response = _response(failure(self.gate, decision, error))
            closes = closes or error.closes
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("request_failed", decision_id=decision.id, operation=decision.operation)
            response = _response(failure(self.gate, decision, InternalError(type(error).__name__)))
        if closes and not response.prepared:
            response.force_close()
        self.gate.telemetry.request_took(decision.operation, perf_counter() - began)
        return response

    async def _route(self, request: web.BaseRequest, decision: Decision) -> web.StreamResponse:
        headers = self._headers.read(request.raw_headers, request.version)
        address = read_target(request.raw_path, method=request.method)
        if address.path_raw.startswith(self._prefix):
            return await self._own(request, headers, address, decision)
        match = self._matcher.match(request.method, address)
        if match is None:
            return await self._pass(request, headers, address)
        route = match.route
        decision.operation = route.operation
        decision.surface = Surface(route.surface) if route.surface else None
        incoming = AiohttpIncoming(request, address, headers, match, self._config.listen)
        if route.operation == "filter":
            return await addable(self.gate, incoming, decision)
        return _response(await _OPERATIONS[route.operation](self.gate, incoming, decision))
