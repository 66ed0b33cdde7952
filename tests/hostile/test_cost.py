"""Nothing that a client can send costs much more than it cost to send: places are given back, memory has a bound, and
the others are served.

The floods go to a gateway process with short time limits, which is measured from outside: its memory in /proc, and its
answers to somebody else while a flood lasts. Crowds are in `test_crowds.py`; what
one body costs to read is in `tests/reading/test_body_cost.py`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest
import pytest_asyncio

from gateway.directory import MAX_CONCURRENT
from gateway.ledger import embedded
from gateway.ledger.steps import Ledger

from .conftest import SHOP, Site, before_lenient
from .lenient import Lenient
from .raw import Reply, Wire

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and has the kernel end stalled connections"),
]

MORE_MIB = 32
"""What a flood may add to the gateway's memory, whatever its size: buffers of hundreds of connections."""

PROMPT_SECONDS = 3.0
"""An answer to somebody else during a flood, on a machine that runs other things too."""

STALL_SECONDS = 1.0
ENDLESS = 200_000_000
"""Bytes, more than any buffer on the way holds."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    redis: embedded.EmbeddedRedis, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """A gateway with short time limits; its upstream counts how many look-ups run at once."""
    listen = {"stall_seconds": STALL_SECONDS}
    async with before_lenient(redis, ledger, tmp_path_factory.mktemp("cost"), listen=listen) as site:
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full(site: Site) -> str:
    """A live session without a free slot."""
    return await full_session(site)


async def full_session(site: Site) -> str:
    session_id = site.new_session(SHOP, "c")
    site.upstream.store.start(session_id, 0.0)
    reply = await site.attach(session_id, SHOP, ["ally-1", "ally-2", "ally-3"])
    assert reply.status == 200
    return session_id


async def others_are_served(site: Site, session_id: str) -> None:
    async with asyncio.timeout(PROMPT_SECONDS):
        assert (await site.attach(session_id, SHOP, ["ally-1"])).status == 200
        assert (await site.attach(session_id, SHOP, ["ally-9"])).status == 403


def one_too_many(session_id: str) -> bytes:
    return (
        b"POST /live/sessions/%b/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: shop-individual\r\n"
        b'Content-Type: application/json\r\nContent-Length: 23\r\n\r\n{"product_id":"ally-9"}' % session_id.encode()
    )


_CHUNKED = (
    b"POST /live/sessions/%s/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: shop-individual\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)
SLOW = {
    "silent": (b"", b""),
    "header": (b"POST /live/sessions/x/products HTTP/1.1\r\nHost: gateway\r\n", b"X"),
    "body": (_CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: 60000"), b" "),
    "chunks": (_CHUNKED, b"1\r\n \r\n"),
    "chunk extension": (_CHUNKED + b"1;", b"x"),
}
"""What comes at once, and what comes byte by byte behind it."""


async def test_a_slow_sender_loses_its_place_in_time(site: Site, full: str) -> None:
    """Slowloris, two hundred at once, in every part of a request: what it drips buys no time."""
    before = site.gateway.memory_mib()
    began = time.monotonic()

    async def drip_until_cut(begin: bytes, drip: bytes) -> float:
        wire = await Wire.open(site.gateway.port)
        try:
            await wire.send(begin.replace(b"%s", full.encode()))
            while not wire.reader.at_eof() and time.monotonic() - began < 10:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        if not await wire.reader.read(65_536):
                            break
                if drip and not await wire.send(drip):
                    break
        except ConnectionError:
            pass
        finally:
            wire.close()
        return time.monotonic() - began

    flood = asyncio.gather(*(drip_until_cut(*kind) for kind in SLOW.values() for _ in range(40)))
    await others_are_served(site, full)
    assert max(await flood) < 6.0
    assert site.gateway.memory_mib() < before + MORE_MIB


async def test_who_reads_nothing_is_answered_no_further_and_loses_its_place(site: Site, full: str) -> None:
    """A pipeline that is never read: the gateway stops reading it, then lets go of the connection."""
    before = site.gateway.memory_mib()
    loop = asyncio.get_running_loop()
    data = one_too_many(full) * 50

    async def flood() -> int:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", site.gateway.port))
        sent = 0
        try:
            while sent < ENDLESS:
                await loop.sock_sendall(sock, data)
                sent += len(data)
        except ConnectionError:
            pass
        finally:
            sock.close()
        return sent

    floods = asyncio.gather(*(flood() for _ in range(3)))
    await others_are_served(site, full)
    async with asyncio.timeout(30):
        assert max(await floods) < ENDLESS
    assert site.gateway.memory_mib() < before + MORE_MIB


async def test_a_flood_of_pipelined_requests_is_answered_one_by_one(site: Site, full: str) -> None:
    """Pipelined and read: all are answered, in order, and none is held in memory beside the few in hand."""
    before = site.gateway.memory_mib()
    count = 2000
    wire = await Wire.open(site.gateway.port)
    refused = b"GET /nothing//here HTTP/1.1\r\nHost: gateway\r\n\r\n"

    async def send() -> None:
        for _ in range(count // 100):
            await wire.send(refused * 100)

    sending = asyncio.gather(send())
    for _ in range(count):
        reply = await wire.reply("GET")
        assert reply is not None
        assert reply.status == 400
    await sending
    wire.close()
    assert site.gateway.memory_mib() < before + MORE_MIB


async def test_invented_ids_neither_drown_the_directory_nor_fill_the_memory(site: Site, full: str) -> None:
    """Sessions and products that nobody knows, many at once: bounded look-ups, bounded memory of what is unknown."""
    upstream = site.upstream
    assert isinstance(upstream, Lenient)
    before = site.gateway.memory_mib()
    upstream.most_at_once = 0
    attach = (
        b"POST /live/sessions/%b/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: shop-individual\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    )

    async def flood(number: int) -> set[int]:
        wire = await Wire.open(site.gateway.port)
        statuses = set()
        for step in range(8):
            body = b'{"product_id":"nobody-%d-%d"}' % (number, step)
            session_id = full.encode() if step % 2 else b"invented-%d-%d" % (number, step)
            await wire.send(attach % (session_id, len(body), body))
            reply = await wire.reply()
            assert reply is not None
            statuses.add(reply.status)
        wire.close()
        return statuses

    floods = asyncio.gather(*(flood(number) for number in range(100)))
    await others_are_served(site, full)
    assert set().union(*await floods) <= {404, 503}
    assert upstream.most_at_once <= 3 * MAX_CONCURRENT
    assert site.gateway.memory_mib() < before + MORE_MIB


# Limits


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(
    redis: embedded.EmbeddedRedis, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """A gateway behind one proxy, with a limit for each account, each client and each peer's connections."""
    limits = {
        "account_requests_per_second": 0.5,
        "account_burst": 10,
        "peer_requests_per_second": 0.5,
        "peer_burst": 20,
        "peer_connections": 8,
    }
    folder = tmp_path_factory.mktemp("limited")
    async with before_lenient(redis, ledger, folder, listen={"forwarded_hops": 1}, limits=limits) as site:
        yield site


async def many(site: Site, request: bytes, count: int) -> list[Reply]:
    wire = await Wire.open(site.gateway.port)
    replies = []
    for _ in range(count):
        await wire.send(request)
        reply = await wire.reply()
        assert reply is not None
        replies.append(reply)
    wire.close()
    return replies


def asks(session_id: str, account_id: str, client: str, extra: str = "") -> bytes:
    return (
        f"POST /live/sessions/{session_id}/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: {account_id}\r\n"
        f"X-Forwarded-For: {client}\r\n{extra}Content-Type: application/json\r\nContent-Length: 23\r\n\r\n"
        '{"product_id":"ally-9"}'
    ).encode()


async def test_an_account_that_asks_too_often_is_told_when_to_come_back(limited: Site) -> None:
    """On both ways through the gateway; refused requests cost as much as others, and other accounts are unaffected."""
    store = limited.upstream.store
    for number, extra in enumerate(("", "TE: trailers\r\n")):
        account_id = ("shop-enterprise", "shop-crossborder")[number]
        session_id = f"limited-{number}"
        store.create(session_id, account_id, 0.0)
        replies = await many(limited, asks(session_id, account_id, f"192.0.2.{number}", extra), 12)
        assert [reply.status for reply in replies] == [200] * 10 + [429] * 2
        problem = json.loads(replies[-1].body)
        assert (problem["reason"], problem["status"]) == ("too_many_requests", 429)
        assert 1 <= int(replies[-1].field("retry-after") or 0) <= 2
        policy = ('"foreign";q=3', None)[number]
        assert {reply.field("ratelimit-policy") for reply in replies} == {policy}
    other = await many(limited, asks("limited-0", "creator-li", "192.0.2.9"), 1)
    assert other[0].status == 403
    failed = [line for line in limited.gateway.lines() if line.get("event") == "failed"]
    assert [(line["reason"], line["client"]) for line in failed] == [("not_session_owner", "192.0.2.9")]
    assert [line["kind"] for line in limited.gateway.lines() if line.get("event") == "limited"] == ["account"]


async def test_a_client_is_the_address_that_the_proxy_names_and_not_what_it_claims(limited: Site) -> None:
    request = "GET /products/ally-1 HTTP/1.1\r\nHost: gateway\r\nX-Forwarded-For: {}\r\n\r\n"
    first = await many(limited, request.format("198.51.100.1").encode(), 21)
    assert [reply.status for reply in first] == [200] * 20 + [429]
    claimed = await many(limited, request.format("203.0.113.7, 198.51.100.1").encode(), 1)
    assert claimed[0].status == 429
    other = await many(limited, request.format("198.51.100.1, 198.51.100.2").encode(), 1)
    assert other[0].status == 200
    same_network = [f"2001:db8:0:1::{number:x}" for number in range(21)]
    statuses = [(await many(limited, request.format(client).encode(), 1))[0].status for client in same_network]
    assert statuses == [200] * 20 + [429]


async def test_one_peer_has_no_more_than_its_connections(limited: Site) -> None:
    wires = [await Wire.open(limited.gateway.port, "127.0.0.3") for _ in range(12)]
    request = b"GET /products/ally-1 HTTP/1.1\r\nHost: gateway\r\nX-Forwarded-For: 198.51.100.77\r\n\r\n"
    served = 0
    for wire in wires:
        await wire.send(request)
        with suppress(ConnectionError):
            served += await wire.reply("GET") is not None
    assert served == 8
    for wire in wires:
        wire.close()

    async def one_more() -> Reply | None:
        wire = await Wire.open(limited.gateway.port, "127.0.0.3")
        await wire.send(request)
        try:
            return await wire.reply("GET")
        finally:
            wire.close()

    reply = await eventually(one_more)
    assert reply.status == 200


async def eventually(ask: Callable[[], Awaitable[Reply | None]]) -> Reply:
    """A place that was given back is free as soon as the gateway has seen its connection end."""
    for _ in range(200):
        if (reply := await ask()) is not None:
            return reply
        await asyncio.sleep(0.02)
    raise AssertionError("the place did not come free")
