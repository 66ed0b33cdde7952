"""A crowd costs the others a share of the gateway, and the gateway a bounded memory.

A thousand hostile connections and what they can do together; a slice of it in every run, all with ATTACHGATE_LONG=1:

    ATTACHGATE_LONG=1 pytest -s tests/hostile/test_crowds.py

Times are compared within one run and never with a number of seconds, memory is the gateway process's own in /proc.
With -s it prints the figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.ledger import embedded
from gateway.ledger.steps import Ledger

from .conftest import SHOP, Site, sections, start_gateway, stop_gateway
from .crowd import Told, ask_all
from .lenient import Lenient

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(400),
]
LONG = bool(os.environ.get("ATTACHGATE_LONG"))
long_only = pytest.mark.skipif(not LONG, reason="a minute of floods: ATTACHGATE_LONG=1")

HAMMERS = 1000 if LONG else 100
QUIET = 1000 if LONG else 100
QUIET_AT_ONCE = 100 if LONG else 20
"""So many of the quiet sessions ask at one moment; each asks several times."""
SLOWER = 40.0
"""How many times longer a quiet request may take beside a crowd that keeps the gateway busy all the time. With a
thousand of them it is some 15 times; where each turn of the loop serves the whole crowd, 70 to 100."""
MORE_MIB = 100
ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    redis: embedded.EmbeddedRedis, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """A gateway with time limits as shipped, that lets one address have no more than so many connections."""
    upstream = Lenient()
    await upstream.start()
    listen = {"header_timeout_seconds": 15.0, "body_timeout_seconds": 15.0}
    limits = {"peer_connections": 2500}
    config = sections(upstream.url, redis.tcp_url, listen=listen, limits=limits)
    gateway = await start_gateway(tmp_path_factory.mktemp("crowds"), config)
    yield Site(gateway, upstream, ledger)
    await stop_gateway(gateway)
    await upstream.close()


def attach(session_id: str, body: bytes, fields: bytes = b"") -> bytes:
    return (
        b"POST /live/sessions/%b/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: shop-individual\r\n%b"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    ) % (session_id.encode(), fields, len(body), body)


def one(product_id: str) -> bytes:
    return b'{"product_id":"%b"}' % product_id.encode()


ALREADY_THERE = one("ally-1")
ONE_TOO_MANY = one("ally-9")


async def full_sessions(site: Site, count: int) -> list[str]:
    """Live sessions without a free slot."""
    found = [site.new_session(SHOP, "crowd") for _ in range(count)]
    for session_id in found:
        site.upstream.store.start(session_id, 0.0)
    three = b'{"product_ids":["ally-1","ally-2","ally-3"]}'
    told = await ask_all(site.gateway.port, shared(20, [attach(session_id, three) for session_id in found]))
    assert told.statuses == {200: count}
    return found


def shared(clients: int, requests: list[bytes]) -> Iterable[list[bytes]]:
    return [requests[number::clients] for number in range(clients)]


@asynccontextmanager
async def measured(site: Site, what: str) -> AsyncIterator[None]:
    """The gateway stays up, and is no larger afterwards than it may be; `what` is for who reads the figures."""
    before = site.gateway.memory_mib()
    yield
    after = site.gateway.memory_mib()
    print(f"\n{what}: {before:.0f} MiB before, {after:.0f} after")
    assert site.gateway.runs
    assert after < before + MORE_MIB


@asynccontextmanager
async def hammering(site: Site, request: bytes, connections: int) -> AsyncIterator[Told]:
    """A crowd on `request`, in a process of its own. What it was told is known behind the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.hostile.crowd", str(site.gateway.port), str(connections)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    told = Told()
    try:
        process.stdin.write(request)
        process.stdin.close()
        assert await process.stdout.readline() == b"ready\n"
        yield told
        process.terminate()
        said = json.loads(await process.stdout.readline())
        told.statuses.update({int(status): count for status, count in said["statuses"].items()})
        told.unanswered = said["unanswered"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_hammered_session_leaves_the_quiet_ones_their_latency(site: Site) -> None:
    """Nobody quiet is refused what is theirs, and a crowd on one session costs the others no more than its share."""
    hot = (await full_sessions(site, 1))[0]
    quiet = await full_sessions(site, QUIET)
    asked = [attach(session_id, body) for session_id in quiet for body in (ALREADY_THERE, ONE_TOO_MANY)]
    right = {200: QUIET, 403: QUIET}
    port = site.gateway.port
    await ask_all(port, shared(QUIET_AT_ONCE, asked))
    calm = await ask_all(port, shared(QUIET_AT_ONCE, asked))
    async with (
        measured(site, f"{HAMMERS} connections on one session, {QUIET} quiet ones"),
        hammering(site, attach(hot, ONE_TOO_MANY), HAMMERS) as hammers,
    ):
        beside = await ask_all(port, shared(QUIET_AT_ONCE, asked))
    for told in (calm, beside):
        assert (told.statuses, told.unanswered) == (right, 0)
    slower = beside.p99_seconds() / calm.p99_seconds()
    print(f"p99 {calm.p99_seconds() * 1e3:.1f} ms calm, {beside.p99_seconds() * 1e3:.1f} beside: {slower:.1f} times")
    print(f"hammered: {dict(hammers.statuses)}, {hammers.unanswered} unanswered")
    assert set(hammers.statuses) == {403}
    assert hammers.statuses[403] > HAMMERS
    assert site.applied(hot) == {"ally-1", "ally-2", "ally-3"}
    assert slower < SLOWER
