"""The same over TLS, whose transports forget their protocol when they close."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, NamedTuple

import pytest
import trustme

from gateway.proxy.answer import Answer
from gateway.proxy.watch import Cut

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Tls(NamedTuple):
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def tls() -> Tls:
    """Both sides' settings, with a certificate for 127.0.0.1 that is made for this run."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return Tls(server, client)


@pytest.mark.parametrize("begun", [b"", EVENTS, SWITCHED], ids=["no answer yet", "event stream", "websocket"])
@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_leaves_is_noticed(wires: Any, tls: Tls, begun: bytes, leave: str) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(begun)
        asked.set()
        await peer.end()
        gone.set()

    front = await wires.front(await wires.upstream(serve), tls=tls.server)
    client = await wires.connect(front.port, tls.client)
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" if begun is SWITCHED else b""
    await client.send(b"GET /x HTTP/1.1\r\nHost: shop\r\n" + upgrade + b"\r\n")
    await asked.wait()
    if begun:
        await client.head()
    getattr(client, leave)()
    await asyncio.wait_for(gone.wait(), 1)
    answer = await front.outcome()
    assert isinstance(answer, Answer)
    assert answer.failure is (None if begun is SWITCHED else Cut.client_gone)


async def test_an_upstream_that_is_lost_in_the_middle(wires: Any, tls: Tls) -> None:
    arrived = asyncio.Event()

    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        await arrived.wait()

    front = await wires.front(await wires.upstream(serve), tls=tls.server)
    client = await wires.connect(front.port, tls.client)
    await client.send(b"GET /x HTTP/1.1\r\nHost: shop\r\n\r\n")
    await client.head()
    assert await client.exactly(3) == b"abc"
    arrived.set()
    assert await client.end() == "reset"


async def test_a_tunnel_carries_what_comes(wires: Any, tls: Tls) -> None:
    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(SWITCHED)
        for _ in range(64):
            await peer.send(await peer.exactly(65536))

    front = await wires.front(await wires.upstream(serve), tls=tls.server)
    client = await wires.connect(front.port, tls.client)
    await client.send(b"GET /x HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await client.head()
    piece = bytes(range(256)) * 256
    for _ in range(64):
        await client.send(piece)
        assert await client.exactly(65536) == piece
    assert await client.rest() == b""
