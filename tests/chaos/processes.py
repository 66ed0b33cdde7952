"""The real processes of a run: Redis, the reference platform, the gateways. Each dies with the harness.

Knows how each is configured, started, found ready, and handled roughly; not when that happens.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import redis

from gateway.ledger import embedded
from gateway.load.world import World
from tests.chaos.plan import LATE_APPLY_SECONDS
from tests.ports import free_port

READY_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.02
STOP_SECONDS: Final = 20.0
RESPONSE_SECONDS: Final = 0.8
HOLD_SECONDS: Final = 2.5
SKEWED: Final = Path(__file__).with_name("skewed.py")

GATEWAY: Final = """
[listen]
port = {port}
admin_port = {admin_port}
drain_seconds = 3

[upstream]
url = "{upstream}"
connect_timeout_seconds = 0.5
response_timeout_seconds = {response}
late_apply_seconds = {late}

[ledger]
url = "{store}"
timeout_seconds = 0.4
hold_seconds = {hold}
durability = "{durability}"
# The sweep would mend what a step does wrong, before the judge sees it.
sweep_sessions_per_second = 0

[directory]
timeout_seconds = {response}
ttl_seconds = 0.5
negative_ttl_seconds = 0.1
stale_if_error_seconds = 5
{limits}
"""


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


class Child:
    """A process that can be started again and again; what it says goes to one file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, root: Path | None = None) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None
        self.paused = False

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ATTACHGATE_")}
        if self._root is not None:
            environ["PYTHONPATH"] = str(self._root)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                cwd=self._root,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def pause(self) -> None:
        self.paused = True
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.paused = False
        self.signal(signal.SIGCONT)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    async def terminate(self) -> int:
        """SIGTERM, and its exit code; killed where it takes too long, which is an error of its own (-9)."""
        self.resume()
        self.signal(signal.SIGTERM)
        return await self.ended(STOP_SECONDS)

    async def ended(self, limit_seconds: float = 5.0) -> int:
        process = self._process
        if process is None:
            return 0
        until = time.monotonic() + limit_seconds
        while process.poll() is None:
            if time.monotonic() > until:
                process.kill()
            await asyncio.sleep(POLL_SECONDS)
        return process.returncode

    def last_words(self, lines: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


async def until_listening(child: Child, port: int) -> None:
    """Raises `AssertionError`, with what the process said, where it ends or stays silent."""
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert child.running, f"{child.name} ended before it listened:\n{child.last_words()}"
            assert time.monotonic() < until, f"{child.name} does not listen on {port}:\n{child.last_words()}"
            await asyncio.sleep(POLL_SECONDS)
        else:
            writer.close()
            return


class PlatformProcess(Child):
    """The reference platform with a world in its memory."""

    def __init__(self, folder: Path, world: World) -> None:
        self.port = free_port()
        data = folder / "world.jsonl"
        with data.open("wb") as file:
            for record in (*world.accounts.values(), *world.products.values()):
                kind = "account" if hasattr(record, "kind") else "product"
                file.write(msgspec.json.encode({"type": kind, **msgspec.to_builtins(record)}) + b"\n")
        command = [sys.executable, "-m", "gateway.cli", "platform", "--port", str(self.port), "--data", str(data)]
        super().__init__("platform", command, folder / "platform.log")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def begin(self) -> None:
        self.start()
        await until_listening(self, self.port)


class RedisProcess(Child):
    """A redis-server that writes every command to its file before it answers, so that a restart forgets nothing."""

    def __init__(self, name: str, folder: Path, extra: Sequence[str] = (), *, sentinel: bool = False) -> None:
        self.port = free_port()
        home = folder / name
        home.mkdir()
        settings = [f"port {self.port}", f"dir {home}", "bind 127.0.0.1", 'save ""']
        if not sentinel:
            settings += ["appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction"]
        file = home / "redis.conf"
        file.write_text("\n".join((*settings, *extra)) + "\n")
        command = [embedded.find_program(), str(file)]
        super().__init__(name, [*command, "--sentinel"] if sentinel else command, folder / f"{name}.log")
        self.client = redis.Redis(port=self.port, socket_timeout=10)

    async def begin(self) -> None:
        self.start()
        await until_listening(self, self.port)
        while True:
            try:
                self.client.ping()
                return
            except redis.BusyLoadingError:
                await asyncio.sleep(POLL_SECONDS)


class GatewayProcess(Child):
    """A gateway behind links of its own. One with a `skewed` clock is started by `skewed.py`; `root` is where the
    package stands, where that is not the one installed."""

    def __init__(
        self,
        number: int,
        folder: Path,
        *,
        upstream: str,
        store: str,
        durability: str = "primary",
        skewed: bool = False,
        root: Path | None = None,
    ) -> None:
        self.port, self.admin_port = free_port(), free_port()
        file = folder / f"gateway-{number}.toml"
        file.write_text(
            GATEWAY.format(
                port=self.port,
                admin_port=self.admin_port,
                upstream=upstream,
                store=store,
                response=RESPONSE_SECONDS,
                late=LATE_APPLY_SECONDS,
                hold=HOLD_SECONDS,
                durability=durability,
                limits="",
            )
        )
        begin = ["-P", str(SKEWED)] if skewed else ["-m", "gateway.cli"]
        command = [sys.executable, *begin, "serve", "--config", str(file)]
        super().__init__(f"gateway {number}", command, folder / f"gateway-{number}.log", root)
        self.skewed = skewed

    async def begin(self) -> None:
        self.start()
        await until_listening(self, self.port)

    def step_clock(self) -> None:
        """Of a skewed one: its wall clock is wrong by something else from now on."""
        self.signal(signal.SIGUSR1)

    def log_lines(self, words: set[str]) -> list[str]:
        """What it logged about a session or any of these decisions."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            if words & {str(entry.get("session_id")), str(entry.get("decision_id"))}:
                found.append(line)
        return found
