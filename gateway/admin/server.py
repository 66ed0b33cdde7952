"""Health, readiness and metrics over HTTP, on a port of their own.

`/healthz` answers as long as the process runs, `/readyz` tells whether it should get traffic and what is in
the way if not, `/metrics` is for Prometheus. A check is run once at a time, however many ask, and none is
waited for longer than its limit: a probe must not become the load that brings the gateway down. Who may ask, and
who is told what a check found, is `guard`'s.

Knows nothing about what is checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import structlog
from aiohttp import web

from gateway import config
from gateway.admin.guard import SAY_AGAIN_SECONDS, AdminPort, answer, application, document, metrics_form
from gateway.errors import GatewayError
from gateway.tasks import Tasks
from gateway.telemetry import Seldom, Telemetry, without_secrets

log = structlog.get_logger(__name__)

CHECK_SECONDS = 2.0
MAX_MESSAGE_CHARS = 512
_SHUTDOWN_SECONDS = 1.0
_DRAINING = "This gateway is being stopped and takes no new connections: send traffic to another one."

Checks = Mapping[str, Callable[[], Awaitable[None]]]
"""Each returns when all is well, and raises what failed and what to do about it."""


class Readiness(msgspec.Struct, frozen=True):
    """`/readyz`. Each check is `ok`, or a message for the operator."""

    status: str
    policy_version: str
    checks: dict[str, str]


class Running:
    """The admin server at work. `port` is the one that was bound, 0 for a unix socket."""

    def __init__(self, runner: web.AppRunner, tasks: Tasks, port: AdminPort) -> None:
        self._runner = runner
        self._tasks = tasks
        self.reload = port.reload
        address = runner.addresses[0]
        self.port = 0 if isinstance(address, str) else int(address[1])

    async def close(self) -> None:
        """Checks that still run are not waited for."""
        await self._tasks.cancel()
        await self._runner.cleanup()


async def start(
    listen: config.Listen,
    telemetry: Telemetry,
    checks: Checks,
    draining: Callable[[], bool],
    *,
    socket: Path | None = None,
    check_seconds: float = CHECK_SECONDS,
) -> Running:
    """Listen on `listen.admin_host` and `listen.admin_port`, or on a unix socket where this is one of several workers:
    then the supervisor asks, whose port has the guard. Raises OSError where that address can't be had."""
    tasks = Tasks("admin")
    readiness = _Checker(checks, check_seconds, tasks)
    port = AdminPort()
    guard = port.guard

    async def healthz(request: web.Request) -> web.Response:
        return document(200, {"status": "ok"})

    async def readyz(request: web.Request) -> web.Response:
        results = await readiness.results()
        stopping = draining()
        results["draining"] = _DRAINING if stopping else "ok"
        ready = all(result == "ok" for result in results.values())
        status = "ok" if ready else "draining" if stopping else "unavailable"
        whole = Readiness(status, telemetry.policy_version, results)
        return document(200 if ready else 503, whole if guard.knows(request) else {"status": status})

    async def metrics(request: web.Request) -> web.Response:
        return answer(200, *telemetry.exposition(metrics_form(request)))

    app = application(guard, healthz, readyz, metrics)
    if socket is None:
        return Running(await port.open(app, listen, _SHUTDOWN_SECONDS), tasks, port)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(socket)).start()
    except BaseException:
        await runner.cleanup()
        raise
    return Running(runner, tasks, port)


class _Checker:
    """Runs all checks at once; whoever asks while they run gets the same results."""

    def __init__(self, checks: Checks, limit_seconds: float, tasks: Tasks) -> None:
        self._checks = checks
        self._limit_seconds = limit_seconds
        self._tasks = tasks
        self._running: asyncio.Task[dict[str, str]] | None = None
        self._said = {name: Seldom(SAY_AGAIN_SECONDS) for name in checks}

    async def results(self) -> dict[str, str]:
        if self._running is None or self._running.done():
            self._running = self._tasks.start(self._run())
        return dict(await asyncio.shield(self._running))

    async def _run(self) -> dict[str, str]:
        results = await asyncio.gather(*(self._one(name) for name in self._checks))
        return dict(zip(self._checks, results, strict=True))

    async def _one(self, name: str) -> str:
        try:
            async with asyncio.timeout(self._limit_seconds):
                await self._checks[name]()
        except TimeoutError:
            result = f"No answer within {self._limit_seconds:g} s: see whether it runs and can be reached from here."
        except GatewayError as error:
            result = error.detail
        except Exception as error:
            result = without_secrets(f"{type(error).__name__}: {error}"[: 2 * MAX_MESSAGE_CHARS])
        else:
            return "ok"
        if self._said[name].now():
            log.warning("not_ready", check=name, result=result)
        return result[:MAX_MESSAGE_CHARS]
