from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.topologies.redis_processes import ClusterNodes, SentinelNodes


@pytest.fixture(scope="package")
def cluster() -> Iterator[ClusterNodes]:
    """Six processes for all tests of this folder; each test leaves them healthy."""
    nodes = ClusterNodes()

    async def begin() -> None:
        try:
            await asyncio.gather(*(node.start() for node in nodes.nodes))
            await nodes.form()
        finally:
            await nodes.let_go()

    async def end() -> None:
        await asyncio.gather(*(node.close() for node in nodes.nodes))

    try:
        asyncio.run(begin())
        yield nodes
    finally:
        asyncio.run(end())


@pytest.fixture(scope="package")
def sentinels() -> Iterator[SentinelNodes]:
    """Six processes for all tests of this folder; each test leaves them healthy."""
    nodes = SentinelNodes()

    async def begin() -> None:
        try:
            await nodes.form()
        finally:
            await nodes.let_go()

    async def end() -> None:
        await asyncio.gather(*(node.close() for node in (*nodes.servers, *nodes.sentinels)))

    try:
        asyncio.run(begin())
        yield nodes
    finally:
        asyncio.run(end())
