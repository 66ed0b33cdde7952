from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import redis.asyncio as redis

from gateway.demo import platform as demo
from gateway.ledger import embedded
from tests.admission.world import Line, World


@pytest.fixture(scope="session")
def redis_server() -> Iterator[embedded.EmbeddedRedis]:
    server = asyncio.run(embedded.start())
    yield server
    asyncio.run(server.close())


@pytest.fixture
async def bare(redis_server: embedded.EmbeddedRedis) -> AsyncIterator[World]:
    """The world without a gateway."""
    client = redis.Redis.from_url(redis_server.url)
    await client.flushall()
    http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    world = World(redis_server.url, await demo.start(), http, client)
    yield world
    await world.close()


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
