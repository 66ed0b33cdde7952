"""What stands between the raw clients and the oracle: a Redis, two upstreams, and a gateway process before each.

The gateways are processes of their own, started as an operator starts them; the upstreams run here, so that what they
applied can be read. A rules file that holds since long ago keeps the corpus from depending on today's date.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio

from gateway.config import Ledger as LedgerConfig
from gateway.demo import platform
from gateway.demo.store import Entry, Store
from gateway.ledger import embedded
from gateway.ledger.connection import connect
from gateway.ledger.steps import Ledger
from gateway.policy.model import Surface

from .lenient import Lenient
from .raw import Reply, Wire

START_SECONDS = 20.0
ROOT = Path(__file__).parents[2]
CAP = 3
SHOP = "shop-individual"
PROFESSIONAL = "shop-flagship"


class Upstream(Protocol):
    url: str
    store: Store


@dataclass
class Strict:
    """The reference platform."""

    url: str
    store: Store


@dataclass
class Gateway:
    """One gateway process. `log` is the file that its lines go to."""

    process: asyncio.subprocess.Process
    port: int
    admin_port: int
    log: Path

    @property
    def runs(self) -> bool:
        return self.process.returncode is None

    def memory_mib(self) -> float:
        """What it holds in RAM now."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@dataclass
class Site:
    """A gateway, its upstream, and the ledger that both are held against."""

    gateway: Gateway
    upstream: Upstream
    ledger: Ledger
    _numbers: list[int] = field(default_factory=lambda: [0])

    def new_session(self, account_id: str, label: str) -> str:
        self._numbers[0] += 1
        session_id = f"{label}-{self.gateway.port}-{self._numbers[0]}"
        self.upstream.store.create(session_id, account_id, time.time())
        return session_id

    async def ask(self, request: bytes, method: str = "POST") -> Reply:
        """One well-formed request on a connection of its own."""
        wire = await Wire.open(self.gateway.port)
        try:
            await wire.send(request)
            reply = await wire.reply(method)
            assert reply is not None, "the gateway closed the connection without an answer"
            return reply
        finally:
            wire.close()

    async def attach(self, session_id: str, account_id: str, products: Iterable[str]) -> Reply:
        body = json.dumps({"product_ids": list(products)}).encode()
        return await self.ask(
            b"POST /live/sessions/%b/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (session_id.encode(), account_id.encode(), len(body), body)
        )

    async def view(self, session_id: str, account_id: str) -> Reply:
        return await self.ask(view_of(session_id, account_id), "GET")

    def applied(self, session_id: str) -> set[str]:
        """The foreign products that use a slot of the session, by what the upstream applied (N5, N6)."""
        return used_by(entry for entry in self.upstream.store.entries() if entry.session_id == session_id)

    async def counted(self, session_id: str) -> set[str]:
        """The same, by what the ledger counts."""
        found = await self.ledger.snapshot(session_id)
        return {slot.product_id for slot in found.slots} if found is not None else set()

    async def agree(self, session_id: str) -> tuple[set[str], set[str]]:
        """Both, as soon as they are equal or have had time enough to become so: settlements may outlive an answer."""
        until = time.monotonic() + 2.0
        while True:
            counted, applied = await self.counted(session_id), self.applied(session_id)
            if counted == applied or time.monotonic() > until:
                return counted, applied
            await asyncio.sleep(0.01)

    def breaches(self) -> list[str]:
        """Everything that the upstream applied and the rules forbid."""
        found = []
        by_session: dict[str, list[Entry]] = {}
        for entry in self.upstream.store.entries():
            if entry.session_id is not None:
                by_session.setdefault(entry.session_id, []).append(entry)
            elif entry.product_id and is_foreign(entry.product_id) and entry.account_id in (SHOP, PROFESSIONAL):
                found.append(f"{entry.surface} of {entry.account_id}: {entry.product_id}")
        for session_id, entries in by_session.items():
            cap = {SHOP: CAP, PROFESSIONAL: 0}.get(entries[0].account_id)
            if cap is not None and len(used := used_by(entries)) > cap:
                found.append(f"session {session_id} of {entries[0].account_id}: {sorted(used)}")
        return found


def view_of(session_id: str, account_id: str) -> bytes:
    return b"GET /_gateway/sessions/%b HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: %b\r\nConnection: close\r\n\r\n" % (
        session_id.encode(),
        account_id.encode(),
    )


def is_foreign(product_id: str) -> bool:
    """To the two restricted accounts, whose shops are `individual` and `flagship`."""
    return not product_id.startswith(("own-individual-", "own-flagship-"))


def used_by(entries: Iterable[Entry]) -> set[str]:
    """The judge's own count. Before the start what has left gives its place back; live, it does not."""
    used: set[str] = set()
    live = False
    for entry in entries:
        if entry.operation == "start":
            live = True
        if entry.operation == "detach" and not live:
            used.discard(entry.product_id or "")
        if entry.operation == "replace" and not live:
            used.discard(str(entry.replaced))
        if entry.operation in ("attach", "replace") and entry.surface is Surface.live_room:
            used.add(entry.product_id or "")
    return {product_id for product_id in used if is_foreign(product_id)}


def old_rules(folder: Path) -> Path:
    """The notice, as if it had come years ago."""
    rules = folder / "policy.toml"
    notice = (ROOT / "gateway" / "policy" / "notice.toml").read_text("utf-8")
    rules.write_text(notice.replace("2026-07-", "2020-07-"), "utf-8")
    return rules


async def start_gateway(folder: Path, sections: Mapping[str, Mapping[str, object]]) -> Gateway:
    """Raises AssertionError with the gateway's last words where it does not listen in time."""
    folder.mkdir(parents=True, exist_ok=True)
    old_rules(folder)
    lines = []
    for section, keys in {**sections, "policy": {"file": "policy.toml"}}.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    config = folder / "gateway.toml"
    config.write_text("\n".join(lines) + "\n")
    log = folder / "gateway.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.cli", "serve", "--config", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={name: value for name, value in os.environ.items() if not name.startswith("ATTACHGATE_")},
        )
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.returncode is None:
        for line in log.read_text().splitlines():
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("event") == "listening":
                port = int(said["url"].rpartition(":")[2])
                return Gateway(process, port, int(said["admin_port"]), log)
        await asyncio.sleep(0.02)
    if process.returncode is None:
        process.kill()
        await process.wait()
    raise AssertionError(f"the gateway does not listen: {log.read_text()[-2000:]}")


async def stop_gateway(gateway: Gateway) -> None:
    if gateway.runs:
        gateway.process.kill()
        await gateway.process.wait()


QUICK = {"header_timeout_seconds": 0.5, "body_timeout_seconds": 0.5, "max_body_bytes": 65_536}
"""So that a test of a time-out is short."""


def sections(upstream_url: str, ledger_url: str, **more: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """The configuration of a gateway on free ports; only 127.0.0.1 may say who asks, so 127.0.0.2 is a stranger."""
    return {
        "upstream": {"url": upstream_url, "late_apply_seconds": 1.0},
        "listen": {"port": 0, "admin_port": 0, **QUICK, **more.pop("listen", {})},
        "ledger": {
            "url": ledger_url,
            "timeout_seconds": 2.0,
            "sweep_sessions_per_second": 0.0,
            **more.pop("ledger", {}),
        },
        "identity": {"trusted_peers": ["127.0.0.1/32"], **more.pop("identity", {})},
        **more,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis() -> AsyncIterator[embedded.EmbeddedRedis]:
    redis = await embedded.start()
    yield redis
    await redis.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ledger(redis: embedded.EmbeddedRedis) -> AsyncIterator[Ledger]:
    connection = connect(redis.tcp_url, 2.0, time.monotonic)
    yield Ledger(connection, LedgerConfig(url=redis.tcp_url), 1.0)
    await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(
    redis: embedded.EmbeddedRedis, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """The reference platform, and a gateway before it."""
    running = await platform.start()
    gateway = await start_gateway(tmp_path_factory.mktemp("strict"), sections(running.url, redis.tcp_url))
    yield Site(gateway, Strict(running.url, running.platform.store), ledger)
    await stop_gateway(gateway)
    await running.close()


@asynccontextmanager
async def before_lenient(
    redis: embedded.EmbeddedRedis, ledger: Ledger, folder: Path, **more: Mapping[str, object]
) -> AsyncIterator[Site]:
    """A gateway before a lenient upstream of its own. `more`: as for `sections`."""
    upstream = Lenient()
    await upstream.start()
    gateway = await start_gateway(folder, sections(upstream.url, redis.tcp_url, **more))
    yield Site(gateway, upstream, ledger)
    await stop_gateway(gateway)
    await upstream.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lenient(
    redis: embedded.EmbeddedRedis, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """A lenient upstream, and a gateway before it. Its reading may be changed between requests."""
    async with before_lenient(redis, ledger, tmp_path_factory.mktemp("lenient")) as site:
        yield site
