"""The reference platform: a real product-attach API with its directory, kept in memory, on a real socket.

What the demo, the tests and the benchmark have behind the gateway. It enforces nothing of the notice. This
module puts the parts together (`build`), runs them inside another program (`start`) or as the command
(`run`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from gateway.demo import misc
from gateway.demo.api import Api
from gateway.demo.controls import Controls
from gateway.demo.core import Platform
from gateway.demo.faults import Fault
from gateway.demo.live import Live
from gateway.demo.records import load
from gateway.errors import ConfigurationError, Mistake

__all__ = ["Platform", "Running", "build", "run", "start"]

MAX_BODY_BYTES: Final = 1024 * 1024
"""Of an API request; the uploads under /misc/ are streamed and have no limit."""

MAX_BACKLOG: Final = 4096
CLOSE_SECONDS: Final = 1.0


def build(platform: Platform) -> web.Application:
    """The application. Its server must cancel handlers of clients that left (`handler_cancellation`), as
    `start` has it do."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.add_routes(Api(platform).routes())
    app.add_routes(Live(platform).routes())
    app.add_routes(Controls(platform).routes())
    app.add_routes(misc.routes())

    async def close(app: web.Application) -> None:
        await platform.close()

    app.on_shutdown.append(close)
    return app


class Running:
    """A platform that listens. `url` has the real port and no slash at its end."""

    def __init__(self, platform: Platform, runner: web.AppRunner, url: str) -> None:
        self.platform = platform
        self.url = url
        self._runner = runner

    async def close(self) -> None:
        """Ends the listener, every connection, and what was still to be applied late."""
        await self._runner.cleanup()


async def start(host: str = "127.0.0.1", port: int = 0, platform: Platform | None = None) -> Running:
    """Listens; port 0 takes a free one. Raises OSError where the address can't be had."""
    platform = Platform() if platform is None else platform
    runner = web.AppRunner(
        build(platform),
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,
        shutdown_timeout=CLOSE_SECONDS,
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=MAX_BACKLOG, reuse_address=True)
    try:
        await site.start()
    except BaseException:
        await runner.cleanup()
        raise
    return Running(platform, runner, site.name.rstrip("/"))


def run(
    *,
    host: str,
    port: int,
    data: Path | None,
    latency_ms: float,
    fault_rate: float,
    fault_mode: str,
    seed: int,
) -> int:
    """The command: serves until SIGTERM or SIGINT, then returns 0; 2 where it can't start, having said
    why."""
    try:
        platform = Platform(records=None if data is None else load(data), latency_ms=latency_ms)
        if fault_rate != 0:
            platform.faults.post(_fault(fault_rate, fault_mode, seed))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(platform, host, port))


def _fault(rate: float, mode: str, seed: int) -> Fault:
    try:
        return msgspec.convert({"mode": mode, "rate": rate, "seed": seed}, Fault)
    except msgspec.ValidationError as error:
        raise ConfigurationError([Mistake("attachgate platform", "--fault-rate, --fault-mode", str(error))]) from error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _reason(error: OSError | OverflowError) -> str:
    """asyncio and uvloop each wrap the system's words in their own; the words themselves are the same."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else str(error)


async def _serve(platform: Platform, host: str, port: int) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        running = await start(host, port, platform)
    except (OSError, OverflowError) as error:
        print(f"attachgate platform: can't listen on {host}:{port}: {_reason(error)}", file=sys.stderr)
        return 2
    print(f"platform listening on {running.url}", flush=True)
    await stop.wait()
    await running.close()
    return 0
