"""Where a request goes: to an operation of a matched route, to the gateway's own view, or on to the upstream.

Everything that leaves here is an answer: an unforeseen exception becomes a problem document with its decision id, and
its traceback goes to the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from time import perf_counter
from typing import Any, TypeVar

import aiohttp
import structlog
from aiohttp import web
from msgspec import Struct

from gateway import refusals
from gateway.admission import remaining, session
from gateway.admission.answers import failure
from gateway.admission.attach import attach
from gateway.admission.decision import Decision, Incoming, Reply
from gateway.admission.facts import caller, check_path_account
from gateway.admission.gate import Gate
from gateway.config import Operation
from gateway.errors import (
    UNFORESEEN,
    BodyMalformed,
    Draining,
    GatewayError,
    InternalError,
    RouteUnknown,
    TooManyRequests,
)
from gateway.policy.model import Surface
from gateway.proxy.addable import addable
from gateway.proxy.answer import Patience, Ready
from gateway.proxy.fast import PlainIncoming, encode
from gateway.proxy.forward import forward
from gateway.proxy.incoming import AiohttpIncoming, peer_ip
from gateway.proxy.limits import Limiter
from gateway.proxy.live import LiveView
from gateway.proxy.rules import Rules
from gateway.proxy.websocket import tunnel, wants_websocket
from gateway.reading.address import Address, read_target
from gateway.reading.client import client_address
from gateway.reading.headers import Headers, forwarding

R = TypeVar("R", bound=web.StreamResponse)

log = structlog.get_logger(__name__)

_OPERATIONS: dict[Operation, Callable[[Gate, Incoming, Decision], Awaitable[Reply]]] = {
    "attach": attach,
    "create": session.create,
    "detach": session.detach,
    "replace": session.replace,
    "start": session.start,
    "end": session.end,
    "filter": addable,
}


class Dispatcher:
    def __init__(self, rules: Rules, gate: Gate, http: aiohttp.ClientSession, live: LiveView, limiter: Limiter) -> None:
        self.rules = rules
        self._limiter = limiter
        self.gate = gate
        self._http = http
        self._live = live
        self._long_lived: set[asyncio.Task[object]] = set()
        self._in_hand = 0
        self._nothing_in_hand = asyncio.Event()
        self.draining = False

    def drain(self) -> None:
        """Streams that would never end are ended now, so that their clients go on elsewhere; no new ones begin."""
        self.draining = True
        for task in self._long_lived:
            task.cancel()

    async def ended(self, limit_seconds: float) -> None:
        """Wait until no request is in hand, since each may still begin a settlement; also those that were cancelled."""
        if self._in_hand:
            self._nothing_in_hand.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_seconds):
                    await self._nothing_in_hand.wait()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        began = perf_counter()
        language = refusals.language(request.headers.get("Accept-Language"))
        decision = Decision("pass", None, language, self.gate.wall_clock())
        answer: web.StreamResponse | Reply
        self._in_hand += 1
        try:
            answer = await self._route(request, decision)
        except Exception as error:
            answer = await self._failed(error, decision)
        finally:
            self._let_go()
        closes = self.draining or decision.closes
        response = answer if isinstance(answer, web.StreamResponse) else _written(request, answer, closes=closes)
        if closes and not response.prepared:
            response.force_close()
        self.gate.telemetry.request_took(decision.operation, perf_counter() - began)
        return response

    async def attach(self, incoming: PlainIncoming, decision: Decision) -> Reply:
        """An attach that the fast lane recognised."""
        began = perf_counter()
        self._in_hand += 1
        try:
            self._let_in(incoming.peer_ip, incoming.headers, decision)
            reply = await attach(self.gate, incoming, decision)
        except Exception as error:
            reply = await self._failed(error, decision)
        finally:
            self._let_go()
        self.gate.telemetry.request_took("attach", perf_counter() - began)
        return reply

    async def _failed(self, error: Exception, decision: Decision) -> Reply:
        """The answer that a failure calls for. A client that has gone needs none: raises the error again."""
        if isinstance(error, ConnectionError):
            raise error
        if not isinstance(error, GatewayError):
            log.error("request_failed", decision_id=decision.id, operation=decision.operation, exc_info=error)
            return failure(self.gate, decision, InternalError(UNFORESEEN))
        decision.closes = error.closes
        if isinstance(error, TooManyRequests):
            remaining.judge(self.gate, decision, error.account_id)
        elif decision.account_id is not None:
            await remaining.tell(self.gate, decision, decision.account_id, error)
        return failure(self.gate, decision, error)

    def _let_go(self) -> None:
        self._in_hand -= 1
        if self._in_hand == 0:
            self._nothing_in_hand.set()

    async def _route(self, request: web.BaseRequest, decision: Decision) -> web.StreamResponse | Reply:
        rules = self.rules
        headers = rules.headers.read(request.raw_headers, request.version)
        self._let_in(peer_ip(request), headers, decision)
        address = read_target(request.raw_path, method=request.method)
        if address.canonical.startswith(rules.config.listen.client_prefix):
            return await self._own(request, headers, address, decision)
        match = rules.matcher.match(request.method, address, has_body=headers.has_body)
        if match is None:
            return await self._pass(request, headers, address)
        route = match.route
        decision.operation = route.operation
        decision.surface = Surface(route.surface) if route.surface else None
        incoming = AiohttpIncoming(request, address, headers, match, rules.config.listen)
        return await _OPERATIONS[route.operation](self.gate, incoming, decision)

    def _let_in(self, peer: str, headers: Headers, decision: Decision) -> None:
        """Raises `TooManyRequests` for a client that asks too often."""
        decision.client = client_address(peer, headers.forwarded_for, self.rules.config.listen.forwarded_hops)
        self._limiter.peer(decision.client)

    async def _pass(self, request: web.BaseRequest, headers: Headers, address: Address) -> web.StreamResponse:
        """What the gateway has no say in: streamed through, with the path as it came and the caller named anew."""
        rules, peer = self.rules, peer_ip(request)
        listen = rules.config.listen
        if listen.deny_unmatched:
            raise RouteUnknown("This gateway forwards only the routes of its configuration (listen.deny_unmatched).")
        fields = headers.forward + headers.content + forwarding(peer, request.scheme, headers)
        owner = rules.owner_in(address)
        if owner is not None or (headers.identity is not None and rules.config.identity.mode == "header"):
            account_id = await caller(self.gate.identity, Asker(peer, headers))
            check_path_account(owner, account_id)
            fields.append(self.gate.identity.forwarded_header(account_id))
        exchange = tunnel if wants_websocket(request) else forward
        work = exchange(
            request,
            self._http,
            rules.config.upstream.url.rstrip("/"),
            target=address.path_raw + address.query_raw,
            headers=fields,
            patience=Patience(listen.body_timeout_seconds, listen.stall_seconds),
            closing=lambda: self.draining,
        )
        endless = exchange is tunnel or _follows_events(request)
        answer = await (self._long(work) if endless else work)
        if answer.failure is not None:
            self.gate.telemetry.error(answer.failure)
        return answer

    async def _own(
        self, request: web.BaseRequest, headers: Headers, address: Address, decision: Decision
    ) -> web.StreamResponse:
        decision.operation = "view"
        if headers.has_body:
            raise BodyMalformed("A session's view is read without a body.")
        segments = address.segments[self._prefix_segments(address) :]
        asking = Asker(peer_ip(request), headers)
        return await self._long(self._live.handle(request, asking, list(segments), decision))

    def _prefix_segments(self, address: Address) -> int:
        return self.rules.config.listen.client_prefix.count("/") - 1

    async def _long(self, work: Coroutine[Any, Any, R]) -> R:
        """A stream that may last as long as its client: ended by `drain`."""
        if self.draining:
            work.close()
            raise Draining("This gateway is stopping: connect again, another one takes the stream.")
        task = asyncio.current_task()
        assert task is not None
        self._long_lived.add(task)
        try:
            return await work
        finally:
            self._long_lived.discard(task)


def _follows_events(request: web.BaseRequest) -> bool:
    """Whether the answer may never end, and nothing is lost where it does: its client comes back for the rest. One that
    does something may be answered with events too, and runs to its end like others."""
    return request.method == "GET" and "text/event-stream" in request.headers.get("Accept", "")


class Asker(Struct, frozen=True):
    peer_ip: str
    headers: Headers


def _written(request: web.BaseRequest, reply: Reply, *, closes: bool) -> Ready:
    """A reply in the bytes that the fast lane would send as well. An old client knows no chunks: a body whose length
    nobody said ends with its connection."""
    old = request.version < (1, 1)
    unmeasured = reply.rest is not None and reply.rest.length is None
    closes = closes or not request.keep_alive or (old and unmeasured)
    if old and not closes:
        reply.headers.append((b"Connection", b"keep-alive"))
    data = encode(reply, closes=closes, chunks=not old)
    if request.method == "HEAD":
        data = data[: len(data) - len(reply.body)]
    return Ready(request, data, keep_alive=not closes, rest=reply.rest, chunked=unmeasured and not old)
