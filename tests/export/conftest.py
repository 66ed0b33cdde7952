"""One Redis of each kind, and a ledger of its own for each test."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from gateway.config import Ledger as LedgerConfig
from gateway.export.exporter import Exporter
from gateway.export.output import Output
from gateway.ledger import embedded
from gateway.ledger.connection import Connection, connect
from gateway.ledger.streams import Streams
from tests.ledger.conftest import redis_url

__all__ = ["redis_url", "usual_redis"]

_numbers = count(1)


@pytest.fixture(scope="session")
def usual_redis() -> Iterator[str]:
    server = asyncio.run(embedded.start())
    yield server.url
    asyncio.run(server.close())


class Memory:
    """An output that fails when it is told to."""

    def __init__(self, positions: dict[int, str] | None = None) -> None:
        self.lines: list[bytes] = []
        self.fails = False
        self._positions = positions or {}

    def write(self, lines: Iterable[bytes]) -> None:
        if self.fails:
            raise OSError(28, "No space left on device")
        self.lines += lines

    def positions(self) -> dict[int, str]:
        return dict(self._positions)

    def close(self) -> None:
        pass

    @property
    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@dataclass
class Journal:
    """A ledger's streams, and exporters of them. `raw`: Redis past all of them."""

    url: str
    folder: Path
    raw: redis.asyncio.Redis
    connection: Connection
    config: LedgerConfig
    processes: list[Process] = field(default_factory=list)

    @property
    def streams(self) -> Streams:
        return Streams(self.connection, self.config)

    def key(self, bucket: int) -> str:
        return f"{self.config.prefix}:{{{bucket}}}:e"

    async def events(self, number: int, *, bucket: int = 5, first: int = 0) -> list[str]:
        """So many events; their operations."""
        names = [f"op-{bucket}-{n}" for n in range(first, first + number)]
        pipe = self.raw.pipeline()
        for name in names:
            fields: dict[Any, Any] = {"s": f"room-{bucket}", "e": "attached", "o": name, "p": "p1 p2", "u": 2}
            pipe.xadd(self.key(bucket), fields, maxlen=self.config.stream_entries)
        await pipe.execute()
        return names

    def exporter(self, output: Output, *, group: str = "export", claim_seconds: float = 30.0) -> Exporter:
        return Exporter(self.streams, output, group, claim_seconds)

    async def once(self, output: Output, **how: Any) -> None:
        await self.exporter(output, **how).run(asyncio.Event(), once=True)

    async def start(self, *arguments: str) -> Process:
        """`attachgate journal` as an operator starts it."""
        file = self.folder / "gateway.toml"
        file.write_text(
            f'[upstream]\nurl = "http://127.0.0.1:9"\n[ledger]\nurl = "{self.url}"\nprefix = "{self.config.prefix}"\n'
        )
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ATTACHGATE_")}
        command = (sys.executable, "-m", "gateway.cli", "journal", "--config", str(file), *arguments)
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environ, limit=1 << 24)
        self.processes.append(process)
        return process

    async def said(self, *arguments: str) -> tuple[int | None, bytes, bytes]:
        process = await self.start(*arguments)
        async with asyncio.timeout(30):
            out, problems = await process.communicate()
        return process.returncode, out, problems


@pytest.fixture
async def journal(redis_url: str, tmp_path: Path) -> AsyncIterator[Journal]:
    async for made in _journal(redis_url, tmp_path):
        yield made


@pytest.fixture
async def processes(usual_redis: str, tmp_path: Path) -> AsyncIterator[Journal]:
    """The same with one kind of Redis, for what is tried with processes."""
    async for made in _journal(usual_redis, tmp_path):
        yield made


async def _journal(url: str, folder: Path) -> AsyncIterator[Journal]:
    config = LedgerConfig(url, prefix=f"j{next(_numbers)}", stream_entries=100_000)
    raw = redis.asyncio.Redis.from_url(url, decode_responses=True)
    journal = Journal(url, folder, raw, connect(url, 2.0, time.monotonic), config)
    yield journal
    for process in journal.processes:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.communicate()
    await journal.connection.close()
    await raw.aclose()


def read_file(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def operations(lines: Iterable[dict[str, Any]]) -> list[str]:
    return [line["decision_id"] for line in lines if line["type"] == "event"]
