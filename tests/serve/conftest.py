"""Gateways as processes, started from the command line as an operator starts them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.admission.conftest import bare, redis_server
from tests.admission.world import World
from tests.ports import free_port

__all__ = ["bare", "redis_server", "serving"]


@dataclass
class Serving:
    world: World
    folder: Path
    port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    processes: list[Process] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "gateway.toml"

    def configure(self, *, sweep_sessions_per_second: float = 0.0, **listen: Any) -> None:
        keys = {"port": self.port, "admin_port": self.admin_port, "drain_seconds": 1.0} | listen
        lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        self.file.write_text(
            "[listen]\n"
            + "\n".join(lines)
            + f"""
[upstream]
url = "{self.world.platform.url}"
connect_timeout_seconds = 0.5
response_timeout_seconds = 2.0
late_apply_seconds = 0.2
[ledger]
url = "{self.world.redis_url}"
hold_seconds = 5.0
sweep_sessions_per_second = {sweep_sessions_per_second}
timeout_seconds = 2.0
"""
        )

    async def start(self, *arguments: str, folder: Path | None = None) -> Process:
        """In a working directory, from which nothing is imported then, as by the installed command."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ATTACHGATE_")}
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                *(["-P"] if folder else []),
                "-m",
                "gateway.cli",
                "serve",
                "--config",
                str(self.file),
                *arguments,
            ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environ,
            cwd=folder,
            limit=1 << 20,
        )
        self.processes.append(process)
        return process

    async def line(self, process: Process, event: str) -> dict[str, Any]:
        """The next log line of that event, from any of its processes."""
        assert process.stderr is not None
        async with asyncio.timeout(15):
            while line := await process.stderr.readline():
                if line.startswith(b"{") and (found := json.loads(line))["event"] == event:
                    return dict(found)
        raise AssertionError(f"it ended without {event}")

    async def ended(self, process: Process) -> int:
        async with asyncio.timeout(15):
            await asyncio.gather(process.wait(), self._drained(process))
        assert process.returncode is not None
        return process.returncode

    async def admin(self, path: str) -> tuple[int, bytes]:
        async with self.world.http.get(f"http://127.0.0.1:{self.admin_port}{path}") as answer:
            return answer.status, await answer.read()

    async def attach(self, product: str, session: str = "s1") -> tuple[int, bytes]:
        url = f"http://127.0.0.1:{self.port}/live/sessions/{session}/products"
        fields = {"X-Account-Id": "shop-individual", "Connection": "close"}
        async with self.world.http.post(url, json={"product_id": product}, headers=fields) as answer:
            return answer.status, await answer.read()

    async def _drained(self, process: Process) -> None:
        assert process.stderr is not None
        while await process.stderr.read(65536):
            pass


@pytest.fixture
async def serving(bare: World, tmp_path: Path) -> AsyncIterator[Serving]:
    await bare.session()
    serving = Serving(bare, tmp_path)
    serving.configure()
    yield serving
    for process in serving.processes:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await serving.ended(process)


def children(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(name))
    return sorted(found)
