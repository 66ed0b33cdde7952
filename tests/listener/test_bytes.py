"""Before an upstream of bytes: what a matched route hands back, and what becomes of requests that a drain meets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from gateway.config import Directory, Listen, Upstream
from gateway.serve import Gateway
from tests.admission.world import World, until

ACCOUNT = "creator-li"
"""Without a cap: nothing but the upstream has a say."""
BODY = b'{"product_id":"ally-1"}'
HEAD = b"Host: x\r\nX-Account-Id: " + ACCOUNT.encode() + b"\r\n"
ATTACH = b"POST /live/sessions/s1/products %b\r\n" + HEAD + b"Content-Type: application/json\r\n"
ATTACH += b"%bContent-Length: 23\r\n\r\n" + BODY
START = b"POST /live/sessions/s1/start HTTP/1.1\r\n" + HEAD + b"\r\n"


class Upstreams:
    """Answers each request with `answer`, once it may."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        self.may = asyncio.Event()
        self.may.set()
        self.heads: asyncio.Queue[bytes] = asyncio.Queue()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                self.heads.put_nowait(head)
                await self.may.wait()
                writer.write(self.answer)
        writer.close()


@pytest.fixture
async def upstream() -> Upstreams:
    return Upstreams()


@pytest.fixture
def listen() -> Listen:
    return Listen(port=0, admin_port=0, drain_seconds=30.0)


@pytest.fixture
async def gateway(bare: World, upstream: Upstreams, listen: Listen) -> AsyncIterator[Gateway]:
    server = await asyncio.start_server(upstream, "127.0.0.1", 0)
    await bare.session("s1", ACCOUNT)
    yield await bare.gateway(
        upstream=Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", late_apply_seconds=0.2),
        directory=Directory(url=bare.platform.url),
        listen=listen,
    )
    upstream.may.set()
    server.close()


async def exchange(gateway: Gateway, request: bytes) -> tuple[list[bytes], bytes]:
    """The lines of the answer's head, and what follows it until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(request)
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        body = await reader.readexactly(int(length[1]) if length else 0)
    writer.close()
    return head[:-4].split(b"\r\n"), body


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(ATTACH % (b"HTTP/1.1", b""), id="fast"),
        pytest.param(ATTACH % (b"HTTP/1.1", b"X-Odd: \xff\r\n"), id="aiohttp"),
        pytest.param(ATTACH % (b"HTTP/1.0", b"Connection: keep-alive\r\n"), id="old"),
        pytest.param(START, id="start"),
    ],
)
async def test_bytes_outside_ascii_come_back_as_they_are(
    gateway: Gateway, upstream: Upstreams, request_: bytes
) -> None:
    status = "HTTP/1.1 200 好 ".encode() + b"\xe9"
    fields = ["X-Name: 直播间".encode(), b"X-Old: caf\xe9", b"Set-Cookie: a=1", b"DATE: now", b"set-cookie: b=2"]
    upstream.answer = b"\r\n".join([status, *fields, b"Content-Length: 15", b"", b'{"attached":[]}'])
    head, body = await exchange(gateway, request_)
    assert head[: len(fields) + 1] == [status, *fields]
    assert sum(line.lower().startswith(b"date:") for line in head) == 1
    assert (b"Connection: keep-alive" in head) is (b"keep-alive" in request_)
    assert body == b'{"attached":[]}'


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        (Listen(port=0, admin_port=0, forwarded_hops=1), b"X-Forwarded-Proto: https"),
        (Listen(port=0, admin_port=0), b"X-Forwarded-Proto: http"),
    ],
    ids=["a trusted one", "anybody"],
)
@pytest.mark.parametrize("request_", [ATTACH % (b"HTTP/1.1", b""), START, b"GET /x HTTP/1.1\r\n" + HEAD + b"\r\n"])
async def test_a_proxy_in_front_that_ended_the_tls(
    gateway: Gateway, upstream: Upstreams, request_: bytes, said: bytes
) -> None:
    field = b"\r\nX-Forwarded-Proto: https\r\n\r\n"
    await exchange(gateway, request_.replace(b"\r\n\r\n", field, 1))
    assert said in upstream.heads.get_nowait().split(b"\r\n")


async def test_no_body_follows_the_head_that_was_asked_for_alone(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"HEAD /_gateway/nothing HTTP/1.1\r\n" + HEAD + b"\r\n")
    writer.write(b"GET /_gateway/nothing HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n")
    async with asyncio.timeout(5):
        said = await reader.read()
    writer.close()
    first, second, body = said.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 404")
    assert second.startswith(b"HTTP/1.1 404")
    assert b"Content-Length: %d" % len(body) in second.split(b"\r\n")
    assert b"Connection: close" not in first.split(b"\r\n")
    assert b"Connection: close" in second.split(b"\r\n")


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"GET /job HTTP/1.1\r\n" + HEAD + b"\r\n", id="plain"),
        pytest.param(
            b"POST /job HTTP/1.1\r\n" + HEAD + b"Accept: application/json, text/event-stream\r\n"
            b"Content-Length: 2\r\n\r\n{}",
            id="may be answered with events",
        ),
        pytest.param(START, id="route"),
        pytest.param(ATTACH % (b"HTTP/1.1", b""), id="fast"),
    ],
)
async def test_what_runs_when_a_drain_begins_is_answered_and_told_the_end(
    gateway: Gateway, upstream: Upstreams, request_: bytes
) -> None:
    upstream.may.clear()
    running = asyncio.ensure_future(exchange(gateway, request_))
    async with asyncio.timeout(5):
        await upstream.heads.get()
    draining = asyncio.ensure_future(gateway.drain())
    await until(lambda: gateway._dispatcher.draining)
    upstream.may.set()
    head, _ = await running
    assert head[0] == b"HTTP/1.1 200 OK"
    assert b"Connection: close" in head
    await draining


async def test_a_stream_of_events_ends_when_a_drain_begins(gateway: Gateway, upstream: Upstreams) -> None:
    upstream.answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /events HTTP/1.1\r\n" + HEAD + b"Accept: text/event-stream\r\n\r\n")
    async with asyncio.timeout(5):
        await reader.readuntil(b"data: 1\n\n")
        draining = asyncio.ensure_future(gateway.drain())
        assert not (await reader.read()).endswith(b"0\r\n\r\n")
        await draining
    writer.close()


@pytest.mark.parametrize("listen", [Listen(port=0, admin_port=0, drain_seconds=0.2)])
async def test_what_a_drain_breaks_off_does_not_look_whole(gateway: Gateway, upstream: Upstreams) -> None:
    """Neither to an old client, which takes the connection's end for the body's."""
    upstream.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    ends = []
    for version in (b"1.0", b"1.1"):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /long HTTP/" + version + b"\r\n" + HEAD + b"\r\n")
        await asyncio.wait_for(reader.readuntil(b"abc"), 5)
        ends.append((reader, writer))
    await gateway.drain()
    (old, _), (new, _) = ends
    with pytest.raises(ConnectionResetError):
        await old.read()
    with suppress(ConnectionError):
        assert await new.read() == b"\r\n"
    for _, writer in ends:
        writer.close()
