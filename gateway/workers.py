"""Several gateway processes on one port: started, watched, reloaded and drained by one supervisor.

Each worker binds the same address with SO_REUSEPORT, and the kernel shares connections out. One that dies is started
again, at most once a second, so that a worker which can't start does not spin; where one can't start in the first
place, none can, and the supervisor says so and ends. The admin port is the supervisor's (`admin.together`).

A worker never outlives its supervisor, however that ends: its standard input is a pipe from it, and a worker whose
input ends drains as on SIGTERM.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from gateway import settings
from gateway.admin.together import Together
from gateway.config import Config
from gateway.errors import ConfigurationError
from gateway.tasks import Tasks
from gateway.tls import Unusable

RESTART_SECONDS = 1.0
KILL_AFTER_SECONDS = 10.0
"""Beyond the drain: settlements have their own limit."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = structlog.get_logger(__name__)


async def supervise(path: Path, config: Config, workers: int, environ: Mapping[str, str]) -> int:
    """Run `workers` processes until SIGTERM or SIGINT; SIGHUP reloads them all. 0 where all ended well."""
    folder = Path(tempfile.mkdtemp(prefix="attachgate-workers-"))
    try:
        return await _Supervisor(path, config, workers, environ, folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Supervisor:
    def __init__(self, path: Path, config: Config, workers: int, environ: Mapping[str, str], folder: Path) -> None:
        self._path = path
        self._config = config
        self._environ = dict(environ)
        self._sockets = {str(place): folder / f"{place}.sock" for place in range(workers)}
        self._running: dict[str, Process] = {}
        self._stop = asyncio.Event()
        self._code = 0
        self._tasks = Tasks("workers")

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._admin = Together(self._sockets, self._stop.is_set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        listen = self._config.listen
        admin = self._admin
        try:
            await admin.start(listen)
            log.info("supervising", workers=len(self._sockets), admin_port=admin.port)
            for place in self._sockets:
                self._tasks.start(self._keep(place))
            await self._stop.wait()
            await self._end()
        except OSError as error:
            log.error("cannot_listen", host=listen.admin_host, admin_port=listen.admin_port, error=str(error))
            return 1
        finally:
            await admin.close()
        return self._code

    async def _keep(self, place: str) -> None:
        """Start a worker, and again whenever it ends."""
        loop = asyncio.get_running_loop()
        first = True
        while not self._stop.is_set():
            began = loop.time()
            process = await self._start(place)
            code = await process.wait()
            if self._stop.is_set():
                return
            lived = loop.time() - began
            if first and code > 0 and not self._sockets[place].exists():
                log.error("worker_cannot_start", worker=place, code=code)
                self._code = code
                self._stop.set()
                return
            first = False
            log.error("worker_ended", worker=place, code=code)
            await asyncio.sleep(max(0.0, RESTART_SECONDS - lived))

    async def _start(self, place: str) -> Process:
        # -P: a package of the same name in the working directory is none of ours.
        command = ("-P", "-m", "gateway.cli", "serve", "--config", str(self._path))
        # It starts with them blocked: one that comes before it can take it would end it (see `serve.run`).
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                "--worker",
                str(self._sockets[place]),
                stdin=asyncio.subprocess.PIPE,
                env=self._environ,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._running[place] = process
        return process

    def _reload(self) -> None:
        """The workers say what is wrong with a file; here it is enough to go on without it."""
        with suppress(ConfigurationError, Unusable):
            self._admin.reload(settings.load_all(self._path, self._environ)[0].listen)
        for process in self._running.values():
            if process.returncode is None:
                process.send_signal(signal.SIGHUP)

    async def _end(self) -> None:
        """Drain all workers at once; one that takes too long is killed."""
        running = [process for process in self._running.values() if process.returncode is None]
        for process in running:
            process.terminate()
        limit = self._config.listen.drain_seconds + KILL_AFTER_SECONDS
        codes = await asyncio.gather(*(_ended(process, limit) for process in running))
        if any(codes) and self._code == 0:
            self._code = 1


async def _ended(process: Process, limit_seconds: float) -> int:
    try:
        async with asyncio.timeout(limit_seconds):
            return await process.wait()
    except TimeoutError:
        log.error("worker_killed", pid=process.pid)
        process.kill()
        return await process.wait()
