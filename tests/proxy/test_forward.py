"""What a client sends past the rules reaches the upstream as it is, and so does the answer on its way back."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest
from aiohttp import web

from gateway.proxy.answer import Answer, Patience
from gateway.proxy.watch import Cut

OK = b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET /x HTTP/1.1\r\nHost: shop\r\n\r\n"


def get(target: str = "/x", *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: shop", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Scripted:
    """An upstream that notes the head of each request and answers with what it was given."""

    def __init__(self, answer: bytes = OK, close: bool = False) -> None:
        self.answer = answer
        self.close = close
        self.heads: list[list[bytes]] = []
        self.asked = asyncio.Semaphore(0)
        self.gone = asyncio.Event()

    async def __call__(self, peer: Any) -> None:
        while True:
            try:
                self.heads.append(await peer.head())
            except asyncio.IncompleteReadError:
                self.gone.set()
                return
            self.asked.release()
            await peer.send(self.answer)
            if self.close:
                return


def came_through(answer: Any) -> None:
    assert isinstance(answer, Answer)
    assert answer.failure is None


class TestRequests:
    @pytest.mark.parametrize(
        "target",
        [
            "/",
            "/?",
            "/x?",
            "/x??",
            "/a%2fb%2F/%20%7e",
            "/a?x=%20b+c&&",
            "/a?q=%E4%BD%A0&q=a%2fb;c",
            "//a/./b/../c",
            "/a/?url=http://elsewhere/?b",
            "/a?'\"<>{}|^`",
            "/" + "a" * 4000,
        ],
    )
    async def test_path_and_query_arrive_byte_for_byte(self, wires: Any, target: str) -> None:
        upstream = Scripted()
        front = await wires.front(await wires.upstream(upstream))
        client = await wires.connect(front.port)
        await client.send(get(target))
        await client.head()
        assert upstream.heads[0][0] == f"GET {target} HTTP/1.1".encode()

    async def test_nothing_is_added_to_a_get(self, wires: Any) -> None:
        upstream = Scripted()
        port = await wires.upstream(upstream)
        front = await wires.front(port)
        client = await wires.connect(front.port)
        await client.send(get("/x", "X-One: 1", "accept-LANGUAGE: zh-Hant", "X-One: 2", "Cookie: a=b", "Empty:"))
        await client.head()
        assert upstream.heads[0][1:] == [
            b"Host: 127.0.0.1:%d" % port,
            b"X-One: 1",
            b"accept-LANGUAGE: zh-Hant",
            b"X-One: 2",
            b"Cookie: a=b",
            b"Empty: ",
        ]

    async def test_hop_by_hop_fields_stay_on_their_hop(self, wires: Any) -> None:
        upstream = Scripted()
        front = await wires.front(await wires.upstream(upstream))
        client = await wires.connect(front.port)
        await client.send(get("/x", "Connection: keep-alive, X-Mine", "X-Mine: 1", "TE: trailers", "X-Kept: 1"))
        await client.head()
        assert upstream.heads[0][2:] == [b"X-Kept: 1"]

    async def test_a_name_in_two_spellings_keeps_both_values(self, wires: Any) -> None:
        upstream = Scripted()
        front = await wires.front(await wires.upstream(upstream))
        client = await wires.connect(front.port)
        await client.send(get("/x", "X-Tag: 1", "x-tag: 2"))
        await client.head()
        assert upstream.heads[0][2:] == [b"X-Tag: 1", b"X-Tag: 2"]

    async def test_what_cannot_be_sent_unchanged_is_refused(self, wires: Any) -> None:
        upstream = Scripted()
        front = await wires.front(await wires.upstream(upstream))
        client = await wires.connect(front.port)
        await client.send(b"GET /x HTTP/1.1\r\nHost: shop\r\nX-Name: caf\xe9\r\n\r\n")
        assert (await client.head())[0].startswith(b"HTTP/1.1 400")
        assert await front.outcome() == "headers_malformed"
        assert upstream.heads == []

    async def test_utf8_values_arrive_unchanged(self, wires: Any) -> None:
        upstream = Scripted()
        front = await wires.front(await wires.upstream(upstream))
        client = await wires.connect(front.port)
        await client.send(get("/x", "X-Name: 直播间"))
        await client.head()
        assert upstream.heads[0][2] == "X-Name: 直播间".encode()

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET", "OPTIONS"])
    async def test_a_body_keeps_its_length(self, wires: Any, method: str) -> None:
        seen: list[Any] = []

        async def serve(peer: Any) -> None:
            seen.append(await peer.head())
            seen.append(await peer.exactly(5))
            await peer.send(OK)

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(get("/x", "Content-Length: 5", method=method) + b"hello")
        assert (await client.head())[0] == b"HTTP/1.1 200 OK"
        assert seen[0][2:] == [b"Content-Length: 5"]
        assert seen[1] == b"hello"

    async def test_a_chunked_body_stays_chunked(self, wires: Any) -> None:
        seen: list[Any] = []

        async def serve(peer: Any) -> None:
            seen.append(await peer.head())
            seen.append(await peer.body())
            await peer.send(OK)

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(get("/x", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert (await client.head())[0] == b"HTTP/1.1 200 OK"
        assert seen[0][2:] == [b"Transfer-Encoding: chunked"]
        assert seen[1] == b"abcde"

    async def test_an_empty_chunked_body_stays_one(self, wires: Any) -> None:
        seen: list[Any] = []

        async def serve(peer: Any) -> None:
            seen.append((await peer.head())[2:])
            seen.append(await peer.body())
            await peer.send(OK)

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(get("/x", "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n")
        assert (await client.head())[0] == b"HTTP/1.1 200 OK"
        assert seen == [[b"Transfer-Encoding: chunked"], b""]

    async def test_a_body_is_streamed_while_the_client_still_sends_it(self, wires: Any) -> None:
        async def serve(peer: Any) -> None:
            await peer.head()
            assert await peer.chunk() == b"one"
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nONE\r\n")
            assert await peer.chunk() == b"two"
            await peer.send(b"3\r\nTWO\r\n")
            assert await peer.chunk() == b""
            await peer.send(b"0\r\n\r\n")

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(get("/x", "Transfer-Encoding: chunked", method="POST") + b"3\r\none\r\n")
        await client.head()
        assert await client.chunk() == b"ONE"
        await client.send(b"3\r\ntwo\r\n")
        assert await client.chunk() == b"TWO"
        await client.send(b"0\r\n\r\n")
        assert await client.chunk() == b""
        came_through(await front.outcome())

    async def test_the_body_is_asked_for_when_the_upstream_is_there(self, wires: Any) -> None:
        seen: list[Any] = []

        async def serve(peer: Any) -> None:
            seen.append(await peer.head())
            seen.append(await peer.exactly(2))
            await peer.send(OK)

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(get("/x", "Content-Length: 2", "Expect: 100-continue", method="PUT"))
        assert await client.head() == [b"HTTP/1.1 100 Continue"]
        await client.send(b"hi")
        assert (await client.head())[0] == b"HTTP/1.1 200 OK"
        assert seen[0][2:] == [b"Content-Length: 2"]
        assert seen[1] == b"hi"

    async def test_a_body_is_not_asked_for_in_vain(self, wires: Any, unused_tcp_port: int) -> None:
        front = await wires.front(unused_tcp_port)
        client = await wires.connect(front.port)
        await client.send(get("/x", "Content-Length: 2", "Expect: 100-continue", method="PUT"))
        assert (await client.head())[0].startswith(b"HTTP/1.1 502")

    async def test_another_protocol_is_not_offered_on(self, wires: Any) -> None:
        upstream = Scripted()
        front = await wires.front(await wires.upstream(upstream))
        client = await wires.connect(front.port)
        fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA")
        for _ in range(2):
            await client.send(get("/x", *fields))
            assert (await client.head())[0] == b"HTTP/1.1 200 OK"
            assert await client.exactly(2) == b"ok"
        assert [head[2:] for head in upstream.heads] == [[], []]


class TestAnswers:
    async def answer(self, wires: Any, raw: bytes, request: bytes = GET) -> tuple[list[bytes], Any]:
        front = await wires.front(await wires.upstream(Scripted(raw, close=True)))
        client = await wires.connect(front.port)
        await client.send(request)
        return await client.head(), client

    async def test_the_head_comes_back_as_it_is(self, wires: Any) -> None:
        fields = [
            b"date: Thu, 01 Jan 2026 00:00:00 GMT",
            b"Set-Cookie: b=2; Path=/",
            b"SERVER: upstream/1",
            b"set-cookie: a=1; HttpOnly",
            b"Set-Cookie: b=2; Path=/",
            b'Content-Disposition: attachment; filename="caf\xe9"',
            b"Content-Length: 2",
            b'ETag: W/"x"',
        ]
        hops = [b"Connection: keep-alive, X-Hop", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"Trailer: X"]
        raw = b"\r\n".join([b"HTTP/1.1 299 Fine by me", *fields[:3], *hops, *fields[3:], b"", b"ok"])
        head, client = await self.answer(wires, raw)
        assert head == [b"HTTP/1.1 299 Fine by me", *fields]
        assert await client.exactly(2) == b"ok"

    async def test_only_a_missing_date_is_added(self, wires: Any) -> None:
        head, _ = await self.answer(wires, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert head[:2] == [b"HTTP/1.1 200 OK", b"Content-Length: 2"]
        assert [line[:6] for line in head[2:]] == [b"Date: "]

    async def test_an_empty_phrase_stays_empty(self, wires: Any) -> None:
        head, _ = await self.answer(wires, b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n")
        assert head[0] == b"HTTP/1.1 200 "

    async def test_a_chunked_answer_stays_chunked(self, wires: Any) -> None:
        raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n"
        head, client = await self.answer(wires, raw)
        assert b"Transfer-Encoding: chunked" in head
        assert await client.body() == b"abc"

    async def test_an_answer_without_length_becomes_chunked(self, wires: Any) -> None:
        head, client = await self.answer(wires, b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        assert b"Transfer-Encoding: chunked" in head
        assert await client.body() == b"until the end"

    async def test_an_old_client_gets_an_answer_without_length_up_to_the_end(self, wires: Any) -> None:
        raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        head, client = await self.answer(wires, raw, get("/x", version="1.0"))
        assert head[0] == b"HTTP/1.0 200 OK"
        assert b"Connection: close" in head
        assert not any(line.lower().startswith((b"transfer-encoding", b"content-length")) for line in head)
        assert await client.rest() == b"abc"

    @pytest.mark.parametrize(
        ("raw", "request_", "length"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", get("/x", method="HEAD"), b"Content-Length: 1234"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", get("/x", method="HEAD"), None),
            (b"HTTP/1.1 204 No Content\r\n\r\n", GET, None),
            (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", GET, b"Content-Length: 99"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", GET, b"Content-Length: 0"),
        ],
    )
    async def test_no_body_stays_no_body(self, wires: Any, raw: bytes, request_: bytes, length: bytes | None) -> None:
        """A second request on the same connection shows that nothing followed the first head."""
        front = await wires.front(await wires.upstream(Scripted(raw)))
        client = await wires.connect(front.port)
        for _ in range(2):
            await client.send(request_)
            head = await client.head()
            assert head[0] == raw.split(b"\r\n")[0]
            assert [line for line in head if line.lower().startswith(b"content-length")] == ([length] if length else [])
            assert not any(line.lower().startswith(b"transfer-encoding") for line in head)
            came_through(await front.outcome())

    async def test_redirects_are_the_clients_business(self, wires: Any) -> None:
        raw = b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/elsewhere?\r\nContent-Length: 0\r\n\r\n"
        head, _ = await self.answer(wires, raw)
        assert head[0] == b"HTTP/1.1 307 Go"
        assert b"Location: http://127.0.0.1:1/elsewhere?" in head

    async def test_compressed_bodies_stay_compressed(self, wires: Any) -> None:
        raw = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b??"
        head, client = await self.answer(wires, raw)
        assert b"Content-Encoding: gzip" in head
        assert await client.exactly(4) == b"\x1f\x8b??"

    async def test_interim_answers_are_not_taken_for_the_answer(self, wires: Any) -> None:
        head, _ = await self.answer(wires, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
        assert head[0] == b"HTTP/1.1 200 OK"

    async def test_both_connections_are_kept(self, wires: Any) -> None:
        upstream = Scripted()
        connections = 0

        async def serve(peer: Any) -> None:
            nonlocal connections
            connections += 1
            await upstream(peer)

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        for _ in range(3):
            await client.send(GET)
            await client.head()
            await client.exactly(2)
        assert connections == 1

    async def test_a_client_that_closes_is_closed(self, wires: Any) -> None:
        head, client = await self.answer(wires, OK, get("/x", "Connection: close"))
        assert b"Connection: close" in head
        assert await client.rest() == b"ok"

    @pytest.mark.parametrize(
        "raw",
        [
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nContent-Le",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"",
        ],
    )
    async def test_what_is_no_answer_is_said_to_be_none(self, wires: Any, raw: bytes) -> None:
        head, client = await self.answer(wires, raw)
        assert head[0].startswith(b"HTTP/1.1 502")
        assert await client.rest() == b"upstream_unreachable"


class TestStreams:
    async def test_events_come_one_by_one(self, wires: Any) -> None:
        next_one = asyncio.Semaphore(0)

        async def serve(peer: Any) -> None:
            await peer.head()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(5):
                await next_one.acquire()
                await peer.send(b"9\r\ndata: %d\n\n\r\n" % number)
            await peer.send(b"0\r\n\r\n")

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(GET)
        assert b"Content-Type: text/event-stream" in await client.head()
        for number in range(5):
            next_one.release()
            assert await client.chunk() == b"data: %d\n\n" % number
        assert await client.chunk() == b""

    async def test_a_silent_event_stream_is_not_a_slow_one(self, wires: Any) -> None:
        """Longer than the limits to the head of an answer and between the pieces of an ordinary one."""
        heads = asyncio.Semaphore(0)

        async def serve(peer: Any) -> None:
            kind = b"text/event-stream" if b"/events" in (await peer.head())[0] else b"text/plain"
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind)
            heads.release()
            if kind == b"text/event-stream":
                await heads.acquire()
                await silence.wait()
                await peer.send(b"1\r\n.\r\n0\r\n\r\n")
            else:
                await peer.reader.read()
                silence.set()

        silence = asyncio.Event()
        front = await wires.front(
            await wires.upstream(serve), Patience(idle_seconds=0.2), response_timeout_seconds=0.05
        )
        events, other = await wires.connect(front.port), await wires.connect(front.port)
        await events.send(get("/events"))
        await events.head()
        await other.send(get("/other"))
        assert await other.end() == "reset"
        assert await events.chunk() == b"."

    async def test_64_mib_each_way_in_constant_memory(self, wires: Any) -> None:
        piece, pieces = bytes(256 * 1024), 256

        async def echo(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            response.content_length = len(piece) * pieces
            await response.prepare(request)
            async for chunk in request.content.iter_any():
                await response.write(chunk)
            return response

        front = await wires.front(await wires.site(echo))
        client = await wires.connect(front.port)

        async def upload() -> None:
            await client.send(get("/x", f"Content-Length: {len(piece) * pieces}", method="POST"))
            for _ in range(pieces):
                await client.send(piece)

        tracemalloc.start()
        try:
            sending = asyncio.ensure_future(upload())
            await client.head()
            left = len(piece) * pieces
            while left:
                left -= len(await asyncio.wait_for(client.reader.read(1 << 20), 5))
            await sending
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * 1024 * 1024
        came_through(await front.outcome())

    async def test_a_client_that_does_not_read_holds_the_upstream_back(self, wires: Any) -> None:
        sent = 0
        gone = asyncio.Event()

        async def serve(peer: Any) -> None:
            nonlocal sent
            await peer.head()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
            try:
                while True:
                    await peer.send(bytes(65536))
                    sent += 65536
            finally:
                gone.set()

        front = await wires.front(await wires.upstream(serve), Patience(stall_seconds=0.2))
        client = await wires.connect(front.port)
        await client.send(GET)
        await asyncio.wait_for(gone.wait(), 5)
        answer = await front.outcome()
        assert isinstance(answer, Answer)
        assert answer.failure is Cut.client_slow
        assert sent < 32 * 1024 * 1024


class TestFailures:
    async def test_an_upstream_that_is_away(self, wires: Any, unused_tcp_port: int) -> None:
        front = await wires.front(unused_tcp_port)
        client = await wires.connect(front.port)
        await client.send(GET)
        assert (await client.head())[0].startswith(b"HTTP/1.1 502")
        assert await front.outcome() == "upstream_unreachable"

    async def test_an_upstream_that_does_not_answer(self, wires: Any) -> None:
        upstream = Scripted(b"")
        front = await wires.front(await wires.upstream(upstream), response_timeout_seconds=0.1)
        client = await wires.connect(front.port)
        await client.send(GET)
        assert (await client.head())[0].startswith(b"HTTP/1.1 504")
        assert await front.outcome() == "upstream_timeout"
        await asyncio.wait_for(upstream.gone.wait(), 5)

    async def test_the_time_to_the_head_begins_behind_the_body(self, wires: Any) -> None:
        read = asyncio.Semaphore(0)

        async def serve(peer: Any) -> None:
            await peer.head()
            for _ in range(4):
                await peer.exactly(1)
                read.release()
            await peer.send(OK)

        front = await wires.front(await wires.upstream(serve), response_timeout_seconds=0.2)
        client = await wires.connect(front.port)
        await client.send(get("/x", "Content-Length: 4", method="POST"))
        began = asyncio.get_running_loop().time()
        for _ in range(4):
            await client.send(b"x")
            await asyncio.wait_for(read.acquire(), 5)
            await asyncio.sleep(0.08)  # What is tested is that this time does not count.
        assert asyncio.get_running_loop().time() - began > 0.3
        assert (await client.head())[0] == b"HTTP/1.1 200 OK"

    async def test_more_than_the_connections_and_the_queue(self, wires: Any) -> None:
        heads = asyncio.Semaphore(0)
        free = asyncio.Event()

        async def serve(peer: Any) -> None:
            await peer.head()
            heads.release()
            await free.wait()
            await peer.send(OK)

        front = await wires.front(await wires.upstream(serve), max_connections=1, max_queue=0)
        first, second = await wires.connect(front.port), await wires.connect(front.port)
        await first.send(GET)
        await heads.acquire()
        await second.send(GET)
        assert (await second.head())[0].startswith(b"HTTP/1.1 503")
        free.set()
        assert (await first.head())[0] == b"HTTP/1.1 200 OK"
        third = await wires.connect(front.port)
        await third.send(GET)
        assert (await third.head())[0] == b"HTTP/1.1 200 OK"

    async def test_a_place_that_does_not_come_free(self, wires: Any) -> None:
        heads = asyncio.Semaphore(0)

        async def serve(peer: Any) -> None:
            await peer.head()
            heads.release()
            await peer.reader.read()

        front = await wires.front(
            await wires.upstream(serve), max_connections=1, max_queue=1, connect_timeout_seconds=0.1
        )
        first, second = await wires.connect(front.port), await wires.connect(front.port)
        await first.send(GET)
        await heads.acquire()
        await second.send(GET)
        assert (await second.head())[0].startswith(b"HTTP/1.1 503")

    @pytest.mark.parametrize("request_", [GET, get("/x", version="1.0")])
    @pytest.mark.parametrize(
        "fields", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n", b""], ids=["length", "chunked", "end"]
    )
    async def test_an_answer_that_breaks_off_does_not_look_whole(
        self, wires: Any, fields: bytes, request_: bytes
    ) -> None:
        arrived = asyncio.Event()

        async def serve(peer: Any) -> None:
            await peer.head()
            body = b"3\r\nabc\r\n" if b"chunked" in fields else b"abc"
            await peer.send(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body)
            await arrived.wait()
            peer.reset()

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(request_)
        await client.head()
        await client.reader.readuntil(b"abc")
        arrived.set()
        assert await client.end() == "reset"
        answer = await front.outcome()
        assert isinstance(answer, Answer)
        assert answer.failure is Cut.upstream_lost

    @pytest.mark.parametrize("fields", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"])
    async def test_an_answer_that_is_closed_too_early_does_not_look_whole(self, wires: Any, fields: bytes) -> None:
        body = b"3\r\nabc\r\n" if b"chunked" in fields else b"abc"
        upstream = Scripted(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body, close=True)
        front = await wires.front(await wires.upstream(upstream))
        client = await wires.connect(front.port)
        await client.send(GET)
        assert await client.end() == "reset"

    async def test_an_early_answer_reaches_a_client_that_still_sends(self, wires: Any) -> None:
        async def serve(peer: Any) -> None:
            await peer.head()
            await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            await peer.reader.read()

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(get("/x", "Content-Length: 1000000", method="POST") + b"some of it")
        assert (await client.head())[0] == b"HTTP/1.1 413 Too Large"
        assert await client.exactly(2) == b"no"
        came_through(await front.outcome())

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
    @pytest.mark.parametrize("body", [b"", b"hello"])
    async def test_a_request_that_may_change_something_is_sent_once(self, wires: Any, method: str, body: bytes) -> None:
        """On a kept connection that the upstream closes instead of answering: aiohttp would send some again."""
        heads: list[bytes] = []

        async def serve(peer: Any) -> None:
            heads.append((await peer.head())[0])
            await peer.send(OK)
            heads.append((await peer.head())[0])

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(GET)
        await client.head()
        await client.exactly(2)
        await client.send(get("/y", f"Content-Length: {len(body)}", method=method) + body)
        assert (await client.head())[0].startswith(b"HTTP/1.1 502")
        assert heads == [b"GET /x HTTP/1.1", f"{method} /y HTTP/1.1".encode()]

    async def test_a_safe_request_survives_a_kept_connection_that_breaks(self, wires: Any) -> None:
        heads: list[bytes] = []

        async def serve(peer: Any) -> None:
            heads.append((await peer.head())[0])
            await peer.send(OK)
            heads.append((await peer.head())[0])

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        for _ in range(2):
            await client.send(GET)
            assert (await client.head())[0] == b"HTTP/1.1 200 OK"
            await client.exactly(2)
        assert len(heads) == 3


class TestLeaving:
    @pytest.mark.parametrize("fields", [("Content-Length: 100",), ("Transfer-Encoding: chunked",)])
    async def test_in_the_middle_of_an_upload(self, wires: Any, fields: tuple[str, ...]) -> None:
        got = asyncio.Event()
        seen: list[bytes] = []

        async def serve(peer: Any) -> None:
            await peer.head()
            seen.append(await peer.reader.readuntil(b"abc"))
            got.set()
            seen.append(await peer.reader.read())

        port = await wires.upstream(serve)
        front = await wires.front(port)
        client = await wires.connect(front.port)
        await client.send(get("/x", *fields, method="PUT") + (b"abc" if "Len" in fields[0] else b"3\r\nabc\r\n"))
        await asyncio.wait_for(got.wait(), 5)
        client.close()
        answer = await front.outcome()
        assert isinstance(answer, Answer)
        assert answer.failure is Cut.client_gone
        assert b"0\r\n" not in b"".join(seen)

    @pytest.mark.parametrize("leave", ["close", "reset"])
    @pytest.mark.parametrize(
        "begun",
        [
            b"",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        ],
        ids=["before the head", "in the body", "in a silent event stream"],
    )
    async def test_while_the_upstream_is_silent(self, wires: Any, leave: str, begun: bytes) -> None:
        """The upstream learns of it at once, though there is nothing to write to the client."""
        asked = asyncio.Event()
        gone = asyncio.Event()

        async def serve(peer: Any) -> None:
            await peer.head()
            await peer.send(begun)
            asked.set()
            await peer.end()
            gone.set()

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(GET)
        await asked.wait()
        if begun:
            await client.head()
        getattr(client, leave)()
        await asyncio.wait_for(gone.wait(), 1)
        answer = await front.outcome()
        assert isinstance(answer, Answer)
        assert answer.failure is Cut.client_gone

    async def test_in_the_middle_of_a_download(self, wires: Any) -> None:
        gone = asyncio.Event()

        async def serve(peer: Any) -> None:
            await peer.head()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
            try:
                while True:
                    await peer.send(bytes(65536))
            finally:
                gone.set()

        front = await wires.front(await wires.upstream(serve))
        client = await wires.connect(front.port)
        await client.send(GET)
        await client.exactly(1000)
        client.close()
        await asyncio.wait_for(gone.wait(), 1)

    async def test_leaves_nothing_behind(self, wires: Any) -> None:
        """The place in the pool is given back, whatever became of the exchange."""
        upstream = Scripted(b"")
        front = await wires.front(await wires.upstream(upstream), max_connections=1, max_queue=0)
        for _ in range(3):
            upstream.gone.clear()
            client = await wires.connect(front.port)
            await client.send(GET)
            await asyncio.wait_for(upstream.asked.acquire(), 5)
            client.reset()
            answer = await front.outcome()
            assert isinstance(answer, Answer)
            await asyncio.wait_for(upstream.gone.wait(), 5)


class TestSlowness:
    async def test_of_a_client_that_does_not_send_its_body(self, wires: Any) -> None:
        gone = asyncio.Event()

        async def serve(peer: Any) -> None:
            await peer.head()
            await peer.end()
            gone.set()

        front = await wires.front(await wires.upstream(serve), Patience(body_seconds=0.1))
        client = await wires.connect(front.port)
        await client.send(get("/x", "Content-Length: 100", method="POST") + b"abc")
        assert (await client.head())[0].startswith(b"HTTP/1.1 400")
        assert await front.outcome() == "body_malformed"
        await asyncio.wait_for(gone.wait(), 5)

    async def test_of_a_client_whose_chunks_break_in_the_middle(self, wires: Any) -> None:
        """Its bytes are no body any more, so it gets no further than if it had stopped sending."""
        upstream = Scripted(b"")
        front = await wires.front(await wires.upstream(upstream), Patience(body_seconds=0.2))
        client = await wires.connect(front.port)
        await client.send(get("/x", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
        await asyncio.wait_for(upstream.asked.acquire(), 5)
        await client.send(b"zz\r\nabc\r\n0\r\n\r\n")
        assert (await client.head())[0].startswith(b"HTTP/1.1 400")
        assert await front.outcome() == "body_malformed"

    async def test_of_an_upstream_that_does_not_take_the_body(self, wires: Any) -> None:
        async def serve(peer: Any) -> None:
            peer.writer.transport.pause_reading()
            await never.wait()

        never = asyncio.Event()
        front = await wires.front(await wires.upstream(serve), Patience(stall_seconds=0.2))
        client = await wires.connect(front.port)
        await client.send(get("/x", "Content-Length: 99999999", method="POST"))

        async def pour() -> None:
            while True:
                await client.send(bytes(65536))

        pouring = asyncio.ensure_future(pour())
        assert (await client.head())[0].startswith(b"HTTP/1.1 504")
        assert await front.outcome() == "upstream_timeout"
        pouring.cancel()
        with pytest.raises((asyncio.CancelledError, ConnectionError)):
            await pouring

    async def test_of_an_upstream_in_the_middle_of_its_answer(self, wires: Any) -> None:
        upstream = Scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        front = await wires.front(await wires.upstream(upstream), Patience(idle_seconds=0.1))
        client = await wires.connect(front.port)
        await client.send(GET)
        await client.head()
        assert await client.end() == "reset"
        answer = await front.outcome()
        assert isinstance(answer, Answer)
        assert answer.failure is Cut.upstream_slow
