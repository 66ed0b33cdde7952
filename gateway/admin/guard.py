"""Who may ask the admin port what.

Without a token the port is bound to loopback or asks for client certificates (`config.checks` sees to it), and whoever
gets in may ask anything. With one, everything needs it as a bearer token (RFC 6750), except that `/healthz` and
`/readyz` say in one word how the gateway is: the probes of an orchestrator have no credentials. What a check found,
which may name hosts, is for who has the token.

Whoever connects, however slowly, holds no more than `MAX_CONNECTIONS`, and none that is idle for longer than the header
of a request may take. One that comes beyond that is closed at once.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import cast

import msgspec
import structlog
from aiohttp import web

from gateway import config, tls
from gateway.site import Site, end_when_stalled

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 100
"""More than probes, scrapers and operators have open together."""
_SAY_AGAIN_SECONDS = 60.0
_LINGERING_SECONDS = 2.0

_OPEN = frozenset(("/healthz", "/readyz"))
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
        self._say_again_at = 0.0

    async def open(self, app: web.Application, listen: config.Listen, shutdown_seconds: float) -> web.AppRunner:
        """Raises OSError where the address can't be had, and `tls.Unusable`."""
        # aiohttp's limit between two requests counts from the connection's begin, until a header has come as a whole.
        runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=shutdown_seconds,
            keepalive_timeout=listen.header_timeout_seconds,
            lingering_time=_LINGERING_SECONDS,
        )
        await runner.setup()
        try:
            await self._listen(runner, listen)
        except BaseException:
            await runner.cleanup()
            raise
        return runner

    async def _listen(self, runner: web.AppRunner, listen: config.Listen) -> None:
        server = runner.server
        assert server is not None
        self.guard.token = listen.admin_token
        self._tls = tls.server(listen.admin_tls)
        site = Site(
            runner,
            listen.admin_host,
            listen.admin_port,
            tls=self._tls,
            handshake_seconds=listen.header_timeout_seconds,
            factory=lambda: _Doorway(server, listen.stall_seconds, self._turned_away),
        )
        await site.start()

    def _turned_away(self) -> None:
        """Said once in a while: who connects must not fill the log."""
        now = asyncio.get_running_loop().time()
        if now >= self._say_again_at:
            self._say_again_at = now + _SAY_AGAIN_SECONDS
            log.warning("admin_connections_full", limit=MAX_CONNECTIONS)

    def reload(self, listen: config.Listen) -> None:
        """Another token and other files from now on. What may have made the token needless (another address, client
        certificates) takes a restart, so until then it stays. Raises `tls.Unusable`."""
        if self._tls is not None:
            self._tls.reload(listen.admin_tls)
        if listen.admin_token:
            self.guard.token = listen.admin_token


class _Doorway(asyncio.Protocol):
    """Where a connection begins: aiohttp gets it if there is room, and nothing of it if not."""

    def __init__(self, server: web.Server, stall_seconds: float, turned_away: Callable[[], None]) -> None:
        self._server = server
        self._stall_seconds = stall_seconds
        self._turned_away = turned_away

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        through = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= MAX_CONNECTIONS:
            through.abort()
            self._turned_away()
            return
        end_when_stalled(through, self._stall_seconds)
        protocol = self._server()
        through.set_protocol(protocol)
        protocol.connection_made(through)


def application(guard: Guard, healthz: Handler, readyz: Handler, metrics: Handler) -> web.Application:
    """The routes of an admin port, behind its guard."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _OPEN and not guard.knows(request):
            return problem(HTTPStatus.UNAUTHORIZED, _UNAUTHORIZED, {"WWW-Authenticate": 'Bearer realm="admin"'})
        try:
            return await handler(request)
        except web.HTTPException as error:
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return problem(HTTPStatus(error.status), "There are /healthz, /readyz and /metrics, for GET.", allow)

    app = web.Application(middlewares=[guarded])
    app.on_response_prepare.append(_unnamed)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


async def _unnamed(request: web.Request, response: web.StreamResponse) -> None:
    """What runs here, and in which version, is nobody's business."""
    response.headers.pop("Server", None)


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
    return web.Response(status=status, body=body, headers=headers)
