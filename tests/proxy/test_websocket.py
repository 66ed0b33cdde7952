"""A WebSocket between client and upstream behaves as it would without a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from gateway.proxy.answer import Answer, Patience
from gateway.proxy.watch import Cut

HANDSHAKE = (
    b"GET /live/sessions/s1/socket?a=%2f HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Extensions: x-odd; a=1\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: b\r\n\r\n"
)

Served = Callable[[web.WebSocketResponse], Awaitable[None]]


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def sockets(wires: Any) -> Callable[..., Awaitable[str]]:
    """Starts an upstream that does `serve` with each WebSocket, and a gateway; returns the gateway's address."""

    async def start(serve: Served, **options: Any) -> str:
        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            socket = web.WebSocketResponse(max_msg_size=0, **options)
            await socket.prepare(request)
            await serve(socket)
            return socket

        front = await wires.front(await wires.site(handler))
        return f"http://127.0.0.1:{front.port}/socket"

    return start


async def echo(socket: web.WebSocketResponse) -> None:
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)


async def test_text_and_bytes(sockets: Any, browser: aiohttp.ClientSession) -> None:
    async with browser.ws_connect(await sockets(echo)) as socket:
        await socket.send_str("直播间")
        assert await socket.receive_str(timeout=5) == "直播间"
        await socket.send_bytes(b"\x00\xff")
        assert await socket.receive_bytes(timeout=5) == b"\x00\xff"


async def test_a_subprotocol_is_agreed_by_the_ends(sockets: Any, browser: aiohttp.ClientSession) -> None:
    async with browser.ws_connect(await sockets(echo, protocols=("v3", "v2")), protocols=("v1", "v2")) as socket:
        assert socket.protocol == "v2"


@pytest.mark.parametrize("offer", [0, 15])
async def test_compression_is_agreed_by_the_ends(sockets: Any, browser: aiohttp.ClientSession, offer: int) -> None:
    async with browser.ws_connect(await sockets(echo), compress=offer) as socket:
        assert socket.compress == offer
        await socket.send_str("a" * 100_000)
        assert await socket.receive_str(timeout=5) == "a" * 100_000


async def test_a_message_of_any_size(sockets: Any, browser: aiohttp.ClientSession) -> None:
    message = bytes(range(256)) * 65536  # 16 MiB
    async with browser.ws_connect(await sockets(echo), max_msg_size=0) as socket:
        await socket.send_bytes(message)
        assert await socket.receive_bytes(timeout=10) == message


async def test_pings_reach_the_other_end(sockets: Any, browser: aiohttp.ClientSession) -> None:
    got: list[Any] = []

    async def serve(socket: web.WebSocketResponse) -> None:
        got.append(await socket.receive())
        await socket.ping(b"from upstream")
        got.append(await socket.receive())

    async with browser.ws_connect(await sockets(serve, autoping=False), autoping=False) as socket:
        await socket.ping(b"from client")
        message = await socket.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.PING, b"from upstream")
        await socket.pong(b"from upstream")
        assert (await socket.receive(timeout=5)).type is WSMsgType.CLOSE
    assert [(message.type, message.data) for message in got] == [
        (WSMsgType.PING, b"from client"),
        (WSMsgType.PONG, b"from upstream"),
    ]


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, b""), (1001, b"going"), (4001, "再见".encode()), (4999, b"x" * 123)]
)
async def test_the_clients_close_code_and_reason(
    sockets: Any, browser: aiohttp.ClientSession, code: int, reason: bytes
) -> None:
    got: asyncio.Queue[Any] = asyncio.Queue()

    async def serve(socket: web.WebSocketResponse) -> None:
        got.put_nowait(await socket.receive())

    async with browser.ws_connect(await sockets(serve)) as socket:
        await socket.close(code=code, message=reason)
        message = await asyncio.wait_for(got.get(), 5)
    assert (message.type, message.data, message.extra.encode()) == (WSMsgType.CLOSE, code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, b""), (1011, b"broken"), (4002, "结束".encode())])
async def test_the_upstreams_close_code_and_reason(
    sockets: Any, browser: aiohttp.ClientSession, code: int, reason: bytes
) -> None:
    async def serve(socket: web.WebSocketResponse) -> None:
        await socket.close(code=code, message=reason)

    async with browser.ws_connect(await sockets(serve)) as socket:
        message = await socket.receive(timeout=5)
        assert (message.type, message.data, message.extra.encode()) == (WSMsgType.CLOSE, code, reason)


async def test_an_upstream_that_is_lost_is_an_abnormal_closure(sockets: Any, browser: aiohttp.ClientSession) -> None:
    async def serve(socket: web.WebSocketResponse) -> None:
        await socket.receive()
        assert socket._req is not None
        assert socket._req.transport is not None
        socket._req.transport.abort()

    async with browser.ws_connect(await sockets(serve)) as socket:
        await socket.send_str("go")
        assert (await socket.receive(timeout=5)).type is WSMsgType.CLOSED
        assert socket.close_code == 1006


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_is_lost_is_an_abnormal_closure(wires: Any, leave: str) -> None:
    ended: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        ended.put_nowait(socket.close_code)
        return socket

    front = await wires.front(await wires.site(handler))
    client = await wires.connect(front.port)
    await client.send(HANDSHAKE)
    await client.head()
    getattr(client, leave)()
    assert await asyncio.wait_for(ended.get(), 1) == 1006
    assert isinstance(await front.outcome(), Answer)


async def test_the_handshake_passes_unchanged_and_so_do_bytes_sent_right_behind_it(wires: Any) -> None:
    heads: list[list[bytes]] = []

    async def serve(peer: Any) -> None:
        heads.append(await peer.head())
        await peer.send(SWITCHED + b"\x81\x02hi")
        assert await peer.exactly(6) == b"\x8a\x80mask"
        await peer.send(b"\x88\x02\x03\xe8")

    port = await wires.upstream(serve)
    front = await wires.front(port)
    client = await wires.connect(front.port)
    await client.send(HANDSHAKE + b"\x8a\x80mask")
    head = await client.head()
    assert sorted(heads[0]) == sorted(
        [
            b"GET /live/sessions/s1/socket?a=%2f HTTP/1.1",
            b"Host: 127.0.0.1:%d" % port,
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            *HANDSHAKE.split(b"\r\n")[4:8],
        ]
    )
    assert head[0] == b"HTTP/1.1 101 Switching Protocols"
    assert [line for line in head[1:] if not line.startswith(b"Date: ")] == [
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        b"Sec-WebSocket-Protocol: b",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
    ]
    assert await client.rest() == b"\x81\x02hi\x88\x02\x03\xe8"


@pytest.mark.parametrize("status", [b"403 No entry", b"404 Not Found", b"301 Moved"])
async def test_a_refusal_comes_back_unchanged(wires: Any, status: bytes) -> None:
    """And the connection serves further requests."""

    async def serve(peer: Any) -> None:
        while True:
            await peer.head()
            await peer.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 4\r\nX-Why: so\r\n\r\nnope")

    front = await wires.front(await wires.upstream(serve))
    client = await wires.connect(front.port)
    for request in (HANDSHAKE, b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n", HANDSHAKE):
        await client.send(request)
        head = await client.head()
        assert head[0] == b"HTTP/1.1 " + status
        assert b"X-Why: so" in head
        assert await client.exactly(4) == b"nope"


async def test_another_protocol_than_asked_for_is_refused(wires: Any) -> None:
    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: smtp\r\nConnection: Upgrade\r\n\r\n")
        assert await peer.rest() == b""

    front = await wires.front(await wires.upstream(serve))
    client = await wires.connect(front.port)
    await client.send(HANDSHAKE)
    assert (await client.head())[0].startswith(b"HTTP/1.1 502")
    assert await front.outcome() == "upstream_unreachable"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"GET", b"POST"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Upgrade: WebSocket", b"Upgrade: tcp"),
        (b", Upgrade", b""),
        (b"Sec-WebSocket-Version", b"Content-Length: 0\r\nSec-WebSocket-Version"),
    ],
)
async def test_what_is_no_handshake_is_forwarded_as_what_it_is(wires: Any, old: bytes, new: bytes) -> None:
    heads: list[list[bytes]] = []

    async def serve(peer: Any) -> None:
        heads.append(await peer.head())
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    front = await wires.front(await wires.upstream(serve))
    client = await wires.connect(front.port)
    await client.send(HANDSHAKE.replace(old, new))
    await client.head()
    is_handshake = new.startswith(b"Content-Length")  # No body: still one.
    assert any(line.startswith(b"Upgrade") for line in heads[0]) is is_handshake


async def test_an_upstream_that_is_away(wires: Any, unused_tcp_port: int) -> None:
    front = await wires.front(unused_tcp_port)
    client = await wires.connect(front.port)
    await client.send(HANDSHAKE)
    assert (await client.head())[0].startswith(b"HTTP/1.1 502")


async def test_an_upstream_that_does_not_answer(wires: Any) -> None:
    async def serve(peer: Any) -> None:
        await peer.rest()

    front = await wires.front(await wires.upstream(serve), response_timeout_seconds=0.1)
    client = await wires.connect(front.port)
    await client.send(HANDSHAKE)
    assert (await client.head())[0].startswith(b"HTTP/1.1 504")


async def test_a_client_that_leaves_before_the_answer(wires: Any) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def serve(peer: Any) -> None:
        await peer.head()
        asked.set()
        await peer.rest()
        gone.set()

    front = await wires.front(await wires.upstream(serve))
    client = await wires.connect(front.port)
    await client.send(HANDSHAKE)
    await asked.wait()
    client.close()
    await asyncio.wait_for(gone.wait(), 1)
    answer = await front.outcome()
    assert isinstance(answer, Answer)
    assert answer.failure is Cut.client_gone


@pytest.mark.parametrize("reader", ["client", "upstream"])
async def test_an_end_that_does_not_read_holds_the_other_back_and_is_not_waited_for(wires: Any, reader: str) -> None:
    sent = 0
    over = asyncio.Event()

    async def pour(peer: Any) -> None:
        nonlocal sent
        try:
            while True:
                await peer.send(bytes(65536))
                sent += 65536
        finally:
            over.set()

    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(SWITCHED)
        if reader == "client":
            await pour(peer)
        peer.writer.transport.pause_reading()
        await over.wait()

    front = await wires.front(await wires.upstream(serve), Patience(stall_seconds=0.2))
    client = await wires.connect(front.port)
    await client.send(HANDSHAKE)
    await client.head()
    if reader == "upstream":
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(pour(client), 5)
    await asyncio.wait_for(over.wait(), 5)
    assert isinstance(await front.outcome(), Answer)
    assert sent < 32 * 1024 * 1024


async def test_what_was_sent_before_the_end_arrives(wires: Any) -> None:
    """Also what the client is slow to take."""
    last_words = bytes(8 * 1024 * 1024)

    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(SWITCHED + last_words)

    front = await wires.front(await wires.upstream(serve))
    client = await wires.connect(front.port)
    await client.send(HANDSHAKE)
    await client.head()
    assert await client.rest() == last_words


async def test_cancelling_ends_both_sides(wires: Any) -> None:
    gone = asyncio.Event()

    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(SWITCHED)
        assert await peer.rest() == b""
        gone.set()

    front = await wires.front(await wires.upstream(serve))
    stop = wires.closing[-2]
    client = await wires.connect(front.port)
    await client.send(HANDSHAKE)
    await client.head()
    await stop()
    assert await client.rest() == b""
    await asyncio.wait_for(gone.wait(), 1)
    assert await front.outcome() == "cancelled"


async def test_a_place_in_the_pool_is_given_back(wires: Any) -> None:
    async def serve(peer: Any) -> None:
        await peer.head()
        await peer.send(SWITCHED)
        await peer.rest()

    front = await wires.front(await wires.upstream(serve), max_connections=1, max_queue=0)
    for _ in range(3):
        client = await wires.connect(front.port)
        await client.send(HANDSHAKE)
        assert (await client.head())[0].startswith(b"HTTP/1.1 101")
        client.close()
        await front.outcome()
