"""The public port byte by byte: limits in time and number, what is said when something is wrong, and how it ends."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.config import Ledger, Listen, Upstream
from gateway.proxy import dispatch
from gateway.serve import Gateway
from tests.admission.world import World, until

HEAD = b"Host: x\r\nX-Account-Id: shop-individual\r\nContent-Type: application/json\r\n"
BODY = b'{"product_id":"ally-1"}'
ATTACH = b"POST /live/sessions/s1/products HTTP/1.1\r\n" + HEAD
WHOLE = ATTACH + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
SLOW_LANE = b"X-Odd: \xff\r\n"
"""A field that the fast lane does not know, so that aiohttp's way is taken."""


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, fields in lower case, body."""
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in head[1:-2]}
            body = await self.reader.readexactly(int(fields.get("content-length", "0")))
        return int(head[0].split()[1]), fields, body

    async def ended(self, seconds: float = 5) -> bytes:
        """What came until the end. Raises TimeoutError where it does not end."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@pytest.fixture
async def connect(bare: World) -> Any:
    clients = []

    async def connect(gateway: Gateway | None = None) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", (gateway or bare.gateways[0]).port))
        clients.append(client)
        return client

    yield connect
    for client in clients:
        await client.close()


def problem(body: bytes) -> str:
    return str(json.loads(body)["reason"])


async def listening(bare: World, **listen: Any) -> Gateway:
    await bare.session()
    return await bare.gateway(listen=Listen(port=0, admin_port=0, drain_seconds=1.0, **listen))


# Time and number


@pytest.mark.parametrize("sent", [b"", b"POST /live", ATTACH, b"\r\n\r\n", WHOLE + b"POST /li", WHOLE + ATTACH])
async def test_fields_that_do_not_come_in_time_end_the_connection(bare: World, connect: Any, sent: bytes) -> None:
    await listening(bare, header_timeout_seconds=0.1, keepalive_seconds=0.2)
    client = await connect()
    await client.send(sent)
    assert (await client.ended()).count(b"HTTP/1.1") == sent.count(WHOLE)


async def test_nor_do_drops_of_them_keep_it_open(bare: World, connect: Any) -> None:
    await listening(bare, header_timeout_seconds=0.1)
    client = await connect()

    async def drip() -> None:
        for byte in ATTACH * 10:
            await client.send(bytes([byte]))
            await asyncio.sleep(0.01)

    dripping = asyncio.ensure_future(drip())
    await client.ended()
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)


async def test_an_idle_connection_is_closed(bare: World, connect: Any) -> None:
    await listening(bare, keepalive_seconds=0.1)
    client = await connect()
    for extra in (b"", SLOW_LANE):
        await client.send(WHOLE.replace(b"\r\n\r\n", b"\r\n" + extra + b"\r\n", 1))
        assert (await client.answer())[0] == 200
    await client.ended()


@pytest.mark.parametrize("framing", [b"Content-Length: 23\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
async def test_a_body_that_does_not_come_in_time_is_said_so(bare: World, connect: Any, framing: bytes) -> None:
    await listening(bare, body_timeout_seconds=0.1)
    client = await connect()
    await client.send(ATTACH + framing)
    status, fields, body = await client.answer()
    assert (status, problem(body), fields["connection"]) == (400, "body_malformed", "close")
    await client.ended()
    assert bare.journal() == []


async def test_more_connections_than_allowed_are_not_taken(bare: World, connect: Any) -> None:
    gateway = await listening(bare, max_connections=2)
    first, second = await connect(), await connect()
    for client in (first, second):
        await client.send(WHOLE)
        assert (await client.answer())[0] == 200
    third = await connect()
    assert await third.ended() == b""
    await first.close()
    await until(lambda: len(gateway._listener.connections) == 1)
    fourth = await connect()
    await fourth.send(WHOLE)
    assert (await fourth.answer())[0] == 200
    assert b'reason="overloaded"' in gateway.telemetry.exposition()[0]


# Framing


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n",
        b"1\r\n{x",
        b"-1\r\n",
        b"1 \r\n{\r\n",
        b"1\n{\n0\n\n",
        b"10000000000000000\r\n{",
        b"1\r\n{\r\n0\r\nbad trailer\r\n\r\n",
    ],
)
async def test_chunks_that_are_none_are_refused_at_once(world: World, connect: Any, chunks: bytes) -> None:
    client = await connect()
    await client.send(ATTACH + b"Transfer-Encoding: chunked\r\n\r\n")
    await asyncio.sleep(0.02)
    await client.send(chunks)
    status, fields, body = await client.answer()
    assert (status, fields["connection"]) == (400, "close")
    assert problem(body) in ("body_malformed", "headers_malformed")
    await client.ended()
    assert world.journal() == []


@pytest.mark.parametrize(
    ("request_line", "more"),
    [
        (b"POST /live/sessions/s1/products HTTP/1.1\r\n", b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"POST /live/sessions/s1/products HTTP/1.1\r\n", b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n"),
        (b"POST /live/sessions/s1/products HTTP/1.1\r\n", b"Content-Length: -1\r\n\r\n"),
        (b"GARBAGE\r\n", b"\r\n"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
    ],
)
async def test_behind_what_is_framed_in_two_ways_nothing_is_read(
    world: World, connect: Any, request_line: bytes, more: bytes
) -> None:
    client = await connect()
    await client.send(request_line + HEAD + more + WHOLE)
    status, fields, body = await client.answer()
    assert (status, fields["connection"], fields["content-type"]) == (400, "close", "application/problem+json")
    assert "attachgate-decision" in fields
    assert problem(body) == "headers_malformed"
    assert b"HTTP/1.1" not in await client.ended()
    assert world.journal() == []


async def test_a_line_that_is_too_long(world: World, connect: Any) -> None:
    client = await connect()
    await client.send(b"POST /" + b"x" * 20_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n")
    status, _, body = await client.answer()
    assert (status, problem(body)) in ((431, "headers_too_large"), (400, "address_malformed"))


async def test_a_body_that_is_too_large_is_refused_before_it_comes(world: World, connect: Any) -> None:
    client = await connect()
    await client.send(ATTACH + b"Content-Length: 300000\r\n\r\n")
    status, fields, body = await client.answer()
    assert (status, problem(body), fields["connection"]) == (413, "body_too_large", "close")


async def test_requests_in_one_go_are_answered_in_turn(world: World, connect: Any) -> None:
    client = await connect()
    requests = [WHOLE.replace(b"ally-1", b"ally-%d" % n) for n in range(1, 6)]
    await client.send(b"".join(requests[:2]))
    await client.send(requests[2] + requests[3][:50])
    await client.send(requests[3][50:] + requests[4])
    assert [(await client.answer())[0] for _ in range(5)] == [200, 200, 200, 403, 403]


@pytest.mark.parametrize("keep", [b"", b"Connection: keep-alive\r\n"])
async def test_an_http_1_0_client(world: World, connect: Any, keep: bytes) -> None:
    client = await connect()
    await client.send(WHOLE.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n" + keep))
    status, fields, _ = await client.answer()
    assert status == 200
    if keep:
        assert fields["connection"].lower() == "keep-alive"
        await client.send(b"GET /_gateway/sessions/s1 HTTP/1.0\r\nX-Account-Id: shop-individual\r\n\r\n")
        assert (await client.answer())[0] == 200
    assert await client.ended() == b""


async def test_a_client_that_waits_to_be_asked_for_its_body(world: World, connect: Any) -> None:
    client = await connect()
    await client.send(ATTACH + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
    async with asyncio.timeout(5):
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(BODY)
    assert (await client.answer())[0] == 200


# What is said


@pytest.mark.parametrize(
    ("language", "content_language"),
    [("", "zh-CN"), ("en", "en"), ("zh-TW, en;q=0.5", "zh-Hant"), ("fr", "zh-CN"), ("\udcff", "zh-CN")],
)
async def test_errors_are_in_the_clients_language(
    world: World, connect: Any, language: str, content_language: str
) -> None:
    client = await connect()
    field = f"Accept-Language: {language}\r\n".encode("utf-8", "surrogateescape") if language else b""
    await client.send(ATTACH + field + b"Content-Length: 2\r\n\r\n{}")
    status, fields, _ = await client.answer()
    assert (status, fields["content-language"]) == (400, content_language)


@pytest.mark.parametrize("extra", [b"", SLOW_LANE])
async def test_who_does_not_say_who_asks_is_told_how(world: World, connect: Any, extra: bytes) -> None:
    client = await connect()
    anonymous = WHOLE.replace(b"X-Account-Id: shop-individual\r\n", extra)
    await client.send(anonymous)
    status, fields, body = await client.answer()
    assert (status, problem(body)) == (401, "identity_missing")
    assert fields["www-authenticate"]


async def test_the_own_account_only(world: World) -> None:
    said = await world.ask("POST", "/accounts/creator-li/showcase/products", {"product_id": "ally-1"})
    assert (said.status, said.reason) == (403, "not_account_owner")


async def test_what_is_no_route_is_refused_where_that_is_asked_for(bare: World) -> None:
    await listening(bare, deny_unmatched=True)
    for path in ("/misc/echo", "/live/sessions/s1", "/_gateway", "/", "/accounts/shop-individual/showcase"):
        said = await bare.ask("GET", path)
        assert (said.status, said.reason) == (404, "route_unknown")
    assert (await bare.ask("GET", "/_gateway/sessions/s1")).status == 200
    assert (await bare.attach("ally-1")).status == 200


@pytest.mark.parametrize("where", ["attach", "detach", "view"])
async def test_what_is_unforeseen_is_said_without_its_insides(world: World, where: str) -> None:
    gateway = world.gateways[0]

    async def broken(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("secret of the inside")

    gateway.ledger.reserve = gateway.ledger.detach = gateway.ledger.snapshot = broken  # type: ignore[method-assign]
    with capture_logs() as logs:
        if where == "attach":
            said = await world.attach("ally-1", headers={"Accept-Language": "en"})
        elif where == "detach":
            said = await world.detach("ally-1", headers={"Accept-Language": "en"})
        else:
            said = await world.ask("GET", "/_gateway/sessions/s1", headers={"Accept-Language": "en"})
    assert (said.status, said.reason) == (500, "internal_error")
    assert said.headers["Attachgate-Decision"] == said.body["decision_id"]
    assert not any(word in said.raw for word in (b"secret", b"Traceback", b"RuntimeError", b".py"))
    assert [line["decision_id"] for line in logs if line["event"] == "request_failed"] == [said.body["decision_id"]]


@pytest.mark.parametrize("extra", [b"", SLOW_LANE], ids=["fast", "aiohttp"])
async def test_a_request_that_can_not_be_answered_at_all_ends_its_connection(
    world: World, connect: Any, extra: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*arguments: Any, **more: Any) -> Any:
        raise ConnectionResetError("unforeseen")

    monkeypatch.setattr(world.gateways[0].ledger, "reserve", broken)
    client = await connect()
    await client.send(WHOLE.replace(b"\r\n\r\n", b"\r\n" + extra + b"\r\n", 1))
    with capture_logs():
        said = await client.ended()
    assert b"unforeseen" not in said
    assert said == b"" or problem(said.partition(b"\r\n\r\n")[2]) == "internal_error"


async def test_even_a_failing_refusal_is_an_answer(world: World, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(dispatch, "failure", broken)
    client = await connect()
    await client.send(ATTACH + SLOW_LANE + b"Content-Length: 2\r\n\r\n{}")
    status, _, body = await client.answer()
    assert (status, problem(body)) == (500, "internal_error")
    assert b"secret" not in body


# The end


@pytest.mark.parametrize("extra", [b"", SLOW_LANE], ids=["fast", "aiohttp"])
async def test_a_drain_answers_what_runs_and_closes(bare: World, connect: Any, extra: bytes) -> None:
    gateway = await listening(bare)
    bare.fault("slow", delay_ms=150)
    client, idle = await connect(), await connect()
    await client.send(WHOLE.replace(b"\r\n\r\n", b"\r\n" + extra + b"\r\n", 1))
    await until(lambda: len(gateway._opening.on_their_way) == 1)
    draining = asyncio.ensure_future(gateway.drain())
    status, _, _ = await client.answer()
    assert status == 200
    await client.ended()
    await idle.ended()
    await draining
    assert await bare.used() == {"ally-1"}
    with pytest.raises(ConnectionRefusedError):
        await connect(gateway)


@pytest.mark.parametrize("extra", [b"", SLOW_LANE], ids=["fast", "aiohttp"])
async def test_a_drain_waits_no_longer_than_it_may_and_settles(bare: World, connect: Any, extra: bytes) -> None:
    """What does not end by then is in doubt, and Redis knows it before the gateway has gone."""
    await bare.session()
    gateway = await bare.gateway(
        listen=Listen(port=0, admin_port=0, drain_seconds=0.3),
        upstream=Upstream(bare.platform.url, response_timeout_seconds=10.0, late_apply_seconds=0.2),
        ledger=Ledger(bare.redis_url, hold_seconds=30.0),
    )
    bare.fault("timeout")
    client = await connect(gateway)
    await client.send(WHOLE.replace(b"\r\n\r\n", b"\r\n" + extra + b"\r\n", 1))
    await until(lambda: len(gateway._opening.on_their_way) == 1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await gateway.close()
    bare.gateways.clear()
    assert 0.25 < loop.time() - began < 0.9
    snapshot = await bare.snapshot()
    assert snapshot is not None
    assert [record.in_doubt for records in snapshot.records.values() for record in records] == [True]
