"""Several gateway processes on one port: started, watched, reloaded and drained by one supervisor.

Each worker binds the same address with SO_REUSEPORT, and the kernel shares connections out. One that dies is started
again, at most once a second, so that a worker which can't start does not spin.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

RESTART_SECONDS = 1.0
POLL_SECONDS = 0.1

log = structlog.get_logger(__name__)


def supervise(path: Path, workers: int, environ: Mapping[str, str], drain_seconds: float) -> int:
    """Run `workers` processes until SIGTERM or SIGINT; SIGHUP reloads them one by one. 0 where all ended well."""
    running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: asked.append(received))

    def start(place: int) -> None:
        command = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(path), "--share-port"]
        process = subprocess.Popen(command, env=dict(environ))
        running[place] = (process, time.monotonic())

    for place in range(workers):
        start(place)
    while True:
        time.sleep(POLL_SECONDS)
        while asked:
            received = asked.pop(0)
            if received != signal.SIGHUP:
                return _stop([process for process, _ in running.values()], drain_seconds)
            for process, _ in running.values():
                process.send_signal(signal.SIGHUP)
        for place, (process, since) in list(running.items()):
            if process.poll() is not None and time.monotonic() - since > RESTART_SECONDS:
                log.error("worker_ended", worker=place, code=process.returncode)
                start(place)


def _stop(processes: list[subprocess.Popen[bytes]], drain_seconds: float) -> int:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + drain_seconds + 10.0
    code = 0
    for process in processes:
        try:
            code = max(code, abs(process.wait(max(0.1, until - time.monotonic()))))
        except subprocess.TimeoutExpired:
            process.kill()
            code = 1
    return code
