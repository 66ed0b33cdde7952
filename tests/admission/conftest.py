from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import redis.asyncio as redis

from gateway.admission import settle
from gateway.config import Ledger as LedgerConfig
from gateway.demo import platform as demo
from gateway.ledger import embedded
from gateway.ledger.connection import connect
from gateway.ledger.steps import Ledger
from gateway.reconciler import doubt, takeover
from tests.admission.world import HOLD_SECONDS, LATE_SECONDS, Line, World


@pytest.fixture(scope="session")
def redis_server() -> Iterator[embedded.EmbeddedRedis]:
    server = asyncio.run(embedded.start())
    yield server
    asyncio.run(server.close())


@pytest.fixture
async def bare(redis_server: embedded.EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """The world without a gateway."""
    monkeypatch.setattr(takeover, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(takeover, "AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(settle, "LOOK_SECONDS", 0.22)
    monkeypatch.setattr(doubt, "ROUND_SECONDS", 1.0)
    monkeypatch.setattr(doubt, "BUCKETS_A_TICK", 64)
    monkeypatch.setattr(doubt, "MAX_AT_ONCE", 64)
    client = redis.Redis.from_url(redis_server.url)
    await client.flushall()
    http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    connection = connect(redis_server.url, 2.0, time.monotonic)
    ledger = Ledger(connection, LedgerConfig(hold_seconds=HOLD_SECONDS), LATE_SECONDS)
    world = World(redis_server.url, await demo.start(), http, client, ledger)
    yield world
    await world.close()
    await connection.close()


@pytest.fixture
async def world(bare: World) -> World:
    """One gateway, and a session of the individual shop's account: three foreign products, no more."""
    await bare.gateway()
    await bare.session()
    return bare


@pytest.fixture
async def line(bare: World, redis_server: embedded.EmbeddedRedis) -> AsyncIterator[Line]:
    """The way to Redis of gateways that are started with `ledger=line_ledger(line)`."""
    line = Line(str(redis_server.folder / "redis.sock"))
    await line.up()
    yield line
    await asyncio.gather(*(gateway.close() for gateway in bare.gateways))
    bare.gateways.clear()
    await line.close()
