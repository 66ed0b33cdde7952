"""One exchange never becomes part of another, and neither side waits for what the other has said already."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.proxy.answer import Answer, Patience
from gateway.proxy.watch import Cut

SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
HANDSHAKE = (
    b"GET /x HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET /x HTTP/1.1\r\nHost: shop\r\n\r\n"
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"


async def heard(front: Any) -> None:
    """Until a kept connection to the upstream has got what nobody asked for."""
    kept = front.http.connector._conns
    async with asyncio.timeout(5):
        while not any(protocol.should_close for entries in kept.values() for protocol, _ in entries):  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize(
    "unasked",
    [OK.replace(b"ok", b"no"), b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"],
    ids=["a second answer", "a time-out"],
)
async def test_what_comes_unasked_on_a_kept_connection_answers_nobody(
    wires: Any, unasked: bytes, method: bytes
) -> None:
    connections = 0
    more = asyncio.Event()

    async def serve(peer: Any) -> None:
        nonlocal connections
        connections += 1
        await peer.head()
        await peer.send(OK)
        if connections == 1:
            await more.wait()
            await peer.send(unasked)
        await peer.rest()

    front = await wires.front(await wires.upstream(serve))
    first, second = await wires.connect(front.port), await wires.connect(front.port)
    await first.send(GET)
    await first.head()
    assert await first.exactly(2) == b"ok"
    more.set()
    await heard(front)
    await second.send(GET.replace(b"GET", method))
    assert (await second.head())[0] == b"HTTP/1.1 200 OK"
    assert await second.exactly(2) == b"ok"
    assert connections == 2


async def test_an_upstream_that_speaks_first_is_no_upstream(wires: Any) -> None:
    async def serve(peer: Any) -> None:
        await peer.send(b"220 mail.example ESMTP\r\n")
        await peer.end()

    front = await wires.front(await wires.upstream(serve))
    client = await wires.connect(front.port)
    await client.send(GET)
    assert (await client.head())[0].startswith(b"HTTP/1.1 502")
    assert await front.outcome() == "upstream_unreachable"


@pytest.mark.parametrize("kind", [b"text/plain", b"text/event-stream"])
async def test_an_answer_whose_chunks_break_in_the_middle_is_cut_at_once(wires: Any, kind: bytes) -> None:
    arrived = asyncio.Event()

    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(BEGUN % kind)
        await arrived.wait()
        await peer.send(b"zz\r\nabc\r\n0\r\n\r\n")
        await peer.end()

    front = await wires.front(await wires.upstream(serve))
    client = await wires.connect(front.port)
    await client.send(GET)
    await client.head()
    assert await client.chunk() == b"abc"
    arrived.set()
    assert await client.end() == "reset"
    answer = await front.outcome()
    assert isinstance(answer, Answer)
    assert answer.failure is Cut.upstream_lost


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b"Content-Length: 3"])
async def test_a_head_does_not_wait_for_its_body(wires: Any, framing: bytes) -> None:
    """A client may first want to see the answer begin."""

    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(BEGUN % b"text/plain")
        await peer.reader.readuntil(b"yes")
        await peer.send(b"0\r\n\r\n")

    front = await wires.front(await wires.upstream(serve))
    client = await wires.connect(front.port)
    await client.send(b"POST /x HTTP/1.1\r\nHost: shop\r\n" + framing + b"\r\n\r\n")
    await client.head()
    assert await client.chunk() == b"abc"
    await client.send(b"3\r\nyes\r\n0\r\n\r\n" if b"chunked" in framing else b"yes")
    assert await client.chunk() == b""


async def test_a_length_is_told_whatever_connection_says_of_it(wires: Any) -> None:
    async def serve(peer: Any) -> None:
        while True:
            await peer.head()
            await peer.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: Content-Length, X-Hop\r\nX-Hop: 1\r\n\r\n"))

    front = await wires.front(await wires.upstream(serve))
    client = await wires.connect(front.port)
    for _ in range(2):
        await client.send(GET)
        head = await client.head()
        assert b"Content-Length: 2" in head
        assert b"X-Hop: 1" not in head
        assert await client.exactly(2) == b"ok"


SIPS, SIP_BYTES, SIP_SECONDS, STALL_SECONDS = 45, 49152, 0.05, 1.0
"""Slow enough that a kernel which keeps 4 MiB says nothing of it within a stall: it speaks when a third has gone."""


async def pour(peer: Any) -> None:
    while True:
        await peer.send(bytes(SIP_BYTES))


async def sip(peer: Any) -> None:
    for _ in range(SIPS):
        await peer.exactly(SIP_BYTES)
        await asyncio.sleep(SIP_SECONDS)  # What is tested is that a slow reader is not one that does not read.


@pytest.mark.parametrize(
    ("request_", "begun"),
    [(GET, b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n"), (HANDSHAKE, SWITCHED)],
    ids=["download", "websocket"],
)
async def test_a_client_that_reads_slowly_is_not_one_that_has_stopped(
    wires: Any, request_: bytes, begun: bytes
) -> None:
    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(begun)
        await pour(peer)

    front = await wires.front(await wires.upstream(serve), Patience(stall_seconds=STALL_SECONDS))
    client = await wires.connect(front.port)
    await client.send(request_)
    await client.head()
    await sip(client)
    assert front.outcomes.empty()


async def test_nor_is_an_upstream_that_does(wires: Any) -> None:
    read = asyncio.Event()

    async def serve(peer: Any) -> None:
        await peer.head()
        await sip(peer)
        read.set()
        await peer.end()

    front = await wires.front(await wires.upstream(serve), Patience(stall_seconds=STALL_SECONDS))
    client = await wires.connect(front.port)
    await client.send(b"POST /x HTTP/1.1\r\nHost: shop\r\nContent-Length: 999999999\r\n\r\n")
    pouring = asyncio.ensure_future(pour(client))
    await asyncio.wait_for(read.wait(), 10)
    assert front.outcomes.empty()
    pouring.cancel()
    await asyncio.gather(pouring, return_exceptions=True)
