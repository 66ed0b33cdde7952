"""An upstream whose answer to an attach is not small: it goes through as it comes, by either way of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway import settings
from gateway.serve import Gateway
from tests.acceptance.conftest import CONFIG, Room, World, eventually

PIECE = bytes(range(256)) * 1024
PIECES = 32
"""8 MiB and more: over `max_answer_bytes` with the head of the JSON document."""


class LongAnswers:
    """The platform, whose answers to attaches are made long. `go_on`: lets the second half of them go."""

    def __init__(self, platform_url: str) -> None:
        self._platform_url = platform_url
        self.status: int | None = None
        self.with_length = self.breaks_off = False
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        async with (
            aiohttp.ClientSession() as http,
            http.request(
                request.method, self._platform_url + request.path_qs, data=body, headers=dict(request.headers)
            ) as answer,
        ):
            said, attaches = await answer.read(), request.method == "POST" and request.path.endswith("/products")
            status = self.status if attaches and self.status is not None else answer.status
            kind = "text/plain" if attaches else "application/json"
            response = web.StreamResponse(status=status, headers={"Content-Type": kind, "X-Its-Own": "1"})
        if attaches and self.with_length:
            response.content_length = len(said) + PIECES * len(PIECE)
        await response.prepare(request)
        await response.write(said)
        for number in range(PIECES if attaches else 0):
            if number == PIECES // 2:
                if self.breaks_off:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await self.go_on.wait()
            await response.write(PIECE)
        await response.write_eof()
        return response


@pytest.fixture
async def long_answers(world: World, tmp_path: Path, redis_url: str) -> AsyncIterator[LongAnswers]:
    """Before the world's gateway comes one whose upstream gives long answers."""
    answers = LongAnswers(world.upstream.url)
    runner = web.ServerRunner(web.Server(answers.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    file = tmp_path / "long.toml"
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    file.write_text(
        CONFIG.format(upstream=url, redis=redis_url, prefix=f"long-{id(answers)}", listen="", ledger="", more="")
    )
    patient = {"ATTACHGATE_UPSTREAM__RESPONSE_TIMEOUT_SECONDS": "5", "ATTACHGATE_LEDGER__HOLD_SECONDS": "6"}
    gateway = await Gateway.start(*settings.load_all(file, patient | {"ATTACHGATE_DIRECTORY__URL": world.upstream.url}))
    world.gateways.insert(0, gateway)
    yield answers
    await world.close()
    await runner.cleanup()


@pytest.fixture(params=["plain", "by aiohttp"])
async def room(request: pytest.FixtureRequest, world: World, long_answers: LongAnswers) -> Room:
    if request.param == "by aiohttp":
        lane: Any = world.gateways[0]._listener.fast
        lane.recognise = lambda *_: None
    return await world.room()


def raw_attach(room: Room, product: str, version: str = "1.1") -> bytes:
    body = b'{"product_id":"%b"}' % product.encode()
    head = f"POST {room.path}/products HTTP/{version}\r\nHost: gateway\r\nX-Account-Id: {room.account}\r\n"
    return head.encode() + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def used(room: Room, count: int) -> None:
    await eventually(
        room.view, lambda view: view.body["used"] == count and all(s["attached"] for s in view.body["slots"])
    )


@pytest.mark.parametrize("with_length", [True, False], ids=["length", "chunked"])
async def test_it_reaches_the_client_unchanged_and_counts(
    room: Room, long_answers: LongAnswers, with_length: bool
) -> None:
    long_answers.with_length = with_length
    for number in (1, 2):
        answer = await room.attach(f"ally-{number}")
        assert (answer.status, answer.headers["X-Its-Own"]) == (200, "1")
        assert ("Content-Length" in answer.headers) is with_length
        assert answer.headers["RateLimit"] == f'"foreign";r={3 - number}'
        head, _, rest = answer.raw.partition(b"}")
        assert (head, rest == PIECE * PIECES) == (b'{"attached":["ally-%d"]' % number, True)
        await used(room, number)


async def test_the_connection_serves_the_next_request(room: Room, long_answers: LongAnswers) -> None:
    long_answers.with_length = True
    reader, writer = await asyncio.open_connection("127.0.0.1", room.world.gateways[0].port)
    async with asyncio.timeout(20):
        for number in (1, 2):
            writer.write(raw_attach(room, f"ally-{number}"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            assert (await reader.readexactly(length)).endswith(PIECE)
    writer.close()


async def test_what_has_come_does_not_wait_for_the_end(room: Room, long_answers: LongAnswers) -> None:
    long_answers.go_on.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", room.world.gateways[0].port)
    writer.write(raw_attach(room, "ally-1"))
    async with asyncio.timeout(5):
        await reader.readexactly(PIECES // 2 * len(PIECE))
    await used(room, 1)
    long_answers.go_on.set()
    left = b""
    async with asyncio.timeout(5):
        while not left.endswith(b"\r\n0\r\n\r\n"):
            left = left[-8:] + await reader.read(65536)
    writer.close()


async def test_where_it_breaks_off_so_does_the_client_s(room: Room, long_answers: LongAnswers) -> None:
    long_answers.breaks_off = True
    with pytest.raises(aiohttp.ClientError):
        await room.attach("ally-1")
    await used(room, 1)


async def test_a_client_that_leaves_gives_the_upstream_s_place_back(room: Room, long_answers: LongAnswers) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", room.world.gateways[0].port)
    writer.write(raw_attach(room, "ally-1"))
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    places = room.world.gateways[0]._gate.pool._places

    async def busy() -> int:
        return places.busy

    await eventually(busy, lambda count: count == 0, 2.0)
    await used(room, 1)


async def test_a_long_no_gives_the_slot_back(room: Room, long_answers: LongAnswers) -> None:
    await room.attach("ally-1")
    long_answers.status = 409
    answer = await room.attach("ally-2")
    assert (answer.status, len(answer.raw) > PIECES * len(PIECE)) == (409, True)
    await used(room, 1)


async def test_of_a_batch_the_list_decides(room: Room, long_answers: LongAnswers) -> None:
    """What was applied stands in an answer that was not read: in doubt, until the upstream's list has said it."""
    answer = await room.attach("ally-1", "ally-2")
    assert answer.status == 200
    await used(room, 2)


async def test_a_client_that_knows_no_chunks_gets_it_until_the_end(world: World, long_answers: LongAnswers) -> None:
    room = await world.room()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateways[0].port)
    writer.write(raw_attach(room, "ally-1", "1.0"))
    async with asyncio.timeout(10):
        answer = await reader.read(-1)
    assert answer.endswith(b'{"attached":["ally-1"]}' + PIECE * PIECES)
    assert b"ransfer-Encoding" not in answer
    writer.close()
