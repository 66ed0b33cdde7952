"""Who may ask the admin port what.

Without a token the port is bound to loopback or asks for client certificates (`config.checks` sees to it), and whoever
gets in may ask anything. With one, everything needs it as a bearer token (RFC 6750), except that `/healthz` and
`/readyz` say in one word how the gateway is: the probes of an orchestrator have no credentials. What a check found,
which may name hosts, is for who has the token.

Whoever connects, however slowly, holds no more than `MAX_CONNECTIONS`, and none that is idle for longer than the header
of a request may take. One that comes beyond that is closed at once.

What is no HTTP is answered in our words and not logged, or whoever connects could fill the log, with bytes of their own
choice; what fails through a fault of ours is logged once in a while.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler
from prometheus_client.exposition import choose_encoder

from gateway import config, tls
from gateway.site import Site, end_when_stalled
from gateway.telemetry import Seldom

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 100
"""More than probes, scrapers and operators have open together."""
SAY_AGAIN_SECONDS = 60.0
_LINGERING_SECONDS = 2.0

_OPEN = frozenset(("/healthz", "/readyz"))
_NO_HTTP = "The request is not well-formed HTTP/1.1, or its head is longer than is read here."
_FAILED = "This answer could not be made: the reason is in the log of the gateway."
_ROUTES = "There are /healthz, /readyz and /metrics, for GET."
_UNAUTHORIZED = "This needs the token of listen.admin_token, sent as `Authorization: Bearer TOKEN`."

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """`token`: what is asked for; empty for nothing. It may be changed while the port is open."""

    def __init__(self, token: str = "") -> None:
        self.token = token

    def knows(self, request: web.Request) -> bool:
        """Whether the request has the token. How long that takes does not depend on how much of it is right."""
        if not self.token:
            return True
        fields = request.headers.getall("Authorization", [])
        if len(fields) != 1:
            return False
        scheme, _, sent = fields[0].partition(" ")
        right = hmac.compare_digest(sent.strip(" ").encode("utf-8", "surrogateescape"), self.token.encode())
        return right and scheme.lower() == "bearer"


class AdminPort:
    """An admin port, and what guards it: a token, client certificates, or loopback."""

    def __init__(self) -> None:
        self.guard = Guard()
        self._tls: tls.ServerTls | None = None
        self._full = Seldom(SAY_AGAIN_SECONDS)
        self._faults = Seldom(SAY_AGAIN_SECONDS)

    async def open(self, app: web.Application, listen: config.Listen, shutdown_seconds: float) -> web.AppRunner:
        """Raises OSError where the address can't be had, and `tls.Unusable`."""
        # aiohttp's limit between two requests counts from the connection's begin, until a header has come as a whole.
        options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": listen.header_timeout_seconds,
            "lingering_time": _LINGERING_SECONDS,
        }
        runner = web.AppRunner(app, shutdown_timeout=shutdown_seconds, **options)
        await runner.setup()
        try:
            await self._listen(runner, listen, options)
        except BaseException:
            await runner.cleanup()
            raise
        return runner

    async def _listen(self, runner: web.AppRunner, listen: config.Listen, options: dict[str, Any]) -> None:
        server = runner.server
        assert server is not None
        loop = asyncio.get_running_loop()

        def connection() -> _Connection:
            return _Connection(server, self._fault, loop=loop, **options)

        self.guard.token = listen.admin_token
        self._tls = tls.server(listen.admin_tls)
        site = Site(
            runner,
            listen.admin_host,
            listen.admin_port,
            tls=self._tls,
            handshake_seconds=listen.header_timeout_seconds,
            factory=lambda: _Doorway(server, connection, listen.stall_seconds, self._turned_away),
        )
        await site.start()

    def _turned_away(self) -> None:
        if self._full.now():
            log.warning("admin_connections_full", limit=MAX_CONNECTIONS)

    def _fault(self, error: BaseException | None) -> None:
        if self._faults.now():
            log.error("admin_request_failed", exc_info=error)

    def reload(self, listen: config.Listen) -> None:
        """Another token and other files from now on. What may have made the token needless (another address, client
        certificates) takes a restart, so until then it stays. Raises `tls.Unusable`."""
        if self._tls is not None:
            self._tls.reload(listen.admin_tls)
        if listen.admin_token:
            self.guard.token = listen.admin_token


class _Doorway(asyncio.Protocol):
    """Where a connection begins: aiohttp gets it if there is room, and nothing of it if not."""

    def __init__(
        self,
        server: web.Server,
        connection: Callable[[], _Connection],
        stall_seconds: float,
        turned_away: Callable[[], None],
    ) -> None:
        self._server = server
        self._connection = connection
        self._stall_seconds = stall_seconds
        self._turned_away = turned_away

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        through = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= MAX_CONNECTIONS:
            through.abort()
            self._turned_away()
            return
        end_when_stalled(through, self._stall_seconds)
        protocol = self._connection()
        through.set_protocol(protocol)
        protocol.connection_made(through)


class _Connection(RequestHandler):
    """One connection, whose errors are answered in our words. `fault` is told of those that no client can make."""

    __slots__ = ("_fault",)

    def __init__(self, server: web.Server, fault: Callable[[BaseException | None], None], **options: Any) -> None:
        super().__init__(server, **options)
        self._fault = fault

    async def _handle_request(
        self, request: web.BaseRequest, start_time: float | None, request_handler: Any
    ) -> tuple[web.StreamResponse, bool]:
        async def plainly(request: web.BaseRequest) -> web.StreamResponse:
            if request.headers.get("Expect", "100-continue").lower() != "100-continue":
                # aiohttp would repeat what it does not know, and fails where that is not UTF-8.
                return problem(HTTPStatus.EXPECTATION_FAILED, _ROUTES, {})
            try:
                answer: web.StreamResponse = await request_handler(request)
            except web.HTTPException as error:
                allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
                return problem(HTTPStatus(error.status), _ROUTES, allow)
            return answer

        return await super()._handle_request(request, start_time, plainly)

    def log_exception(self, *args: Any, **about: Any) -> None:
        """What ends a connection: a body that is not framed as its head says, or a fault of ours."""
        error = about.get("exc_info")
        if not isinstance(error, web.RequestPayloadError | HttpProcessingError):
            self._fault(error)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp's parser refused, or what a route raised."""
        if isinstance(exc, LineTooLong):
            response = problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _NO_HTTP, {})
        elif isinstance(exc, HttpProcessingError):
            response = problem(HTTPStatus.BAD_REQUEST, _NO_HTTP, {})
        else:
            self._fault(exc)
            response = problem(HTTPStatus.INTERNAL_SERVER_ERROR, _FAILED, {})
        response.force_close()
        return response


def application(guard: Guard, healthz: Handler, readyz: Handler, metrics: Handler) -> web.Application:
    """The routes of an admin port, behind its guard."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _OPEN and not guard.knows(request):
            return problem(HTTPStatus.UNAUTHORIZED, _UNAUTHORIZED, {"WWW-Authenticate": 'Bearer realm="admin"'})
        return await handler(request)

    app = web.Application(middlewares=[guarded])
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


class _Unnamed(web.Response):
    """What runs here, and in which version, is nobody's business."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)


def metrics_form(request: web.Request) -> str:
    """The Accept field that says in which form the metrics are wanted; empty, for the plain one, where
    prometheus-client can't read it: a version that is no number makes it fail."""
    accept = request.headers.get("Accept", "")
    try:
        choose_encoder(accept)
    except (TypeError, ValueError):
        return ""
    return accept


def document(status: int, content: object) -> web.Response:
    return answer(status, msgspec.json.encode(content), "application/json")


def problem(status: HTTPStatus, detail: str, headers: dict[str, str]) -> web.Response:
    """RFC 9457."""
    content = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    response = answer(status, msgspec.json.encode(content), "application/problem+json")
    response.headers.update(headers)
    return response


def answer(status: int, body: bytes, content_type: str) -> web.Response:
    headers = {"Content-Type": content_type, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return _Unnamed(status=status, body=body, headers=headers)
