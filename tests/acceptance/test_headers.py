"""Every answer of an attach route says what remains, where a cap holds, and which decision it was (contract)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.ledger import embedded
from tests.acceptance.conftest import Answer, Room, World, Worlds

SHOWCASE = "/accounts/shop-individual/showcase/products"
VIDEO = "/accounts/shop-individual/videos/v1/products"


def limits(answer: Answer) -> tuple[str | None, str | None]:
    return answer.headers.get("RateLimit-Policy"), answer.headers.get("RateLimit")


async def send(room: Room, body: bytes, path: str | None = None, **headers: str) -> Answer:
    """A body as it stands, through whichever of the gateway's ways it takes."""
    named = {"X-Account-Id": room.account, "Content-Type": "application/json"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    url = room.world.url + (path or f"{room.path}/products")
    async with room.world.http.post(url, data=body, headers=named) as response:
        raw = await response.read()
        return Answer(response.status, response.headers, json.loads(raw), raw)


@pytest.fixture
async def room(world: World) -> Room:
    """One place of three is used."""
    room = await world.room()
    assert (await room.attach("ally-1")).status == 200
    return room


REFUSED: dict[str, tuple[bytes, dict[str, str], int]] = {
    "a body that breaks off": (b'{"product_id":"ally-1"', {}, 400),
    "a key twice": (b'{"product_id":"a","product_id":"b"}', {}, 400),
    "another type": (b'{"product_id":"ally-1"}', {"Content_Type": "text/plain"}, 415),
    "a coding": (b'{"product_id":"ally-1"}', {"Content_Encoding": "gzip"}, 415),
    "too long": (b'{"product_id":"%b"}' % (b"a" * 300_000), {}, 413),
    "an unknown product": (b'{"product_id":"no-such-product"}', {}, 404),
    "too many": (b'{"product_ids":["ally-2","ally-3","ally-4"]}', {}, 403),
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("remembered", [True, False], ids=["known", "asked for"])
async def test_a_refused_attach_says_what_remains(room: Room, why: str, remembered: bool) -> None:
    body, headers, status = REFUSED[why]
    if not remembered:
        directory: Any = room.world.gateways[0]._directory
        directory.account_records.forget(room.account)
        directory.session_records.forget(room.session)
    answer = await send(room, body, **headers)
    assert answer.status == status
    assert limits(answer) == ('"foreign";q=3', '"foreign";r=2')
    assert answer.headers["Attachgate-Decision"] == answer.body["decision_id"]


@pytest.mark.parametrize("path", [SHOWCASE, VIDEO])
@pytest.mark.parametrize("why", ["a key twice", "another type", "an unknown product"])
async def test_where_nothing_foreign_is_allowed_nothing_remains(room: Room, path: str, why: str) -> None:
    body, headers, status = REFUSED[why]
    answer = await send(room, body, path, **headers)
    assert answer.status == status
    assert limits(answer) == ('"foreign";q=0', '"foreign";r=0')
    own = await send(room, b'{"product_id":"own-individual-1"}', path)
    assert (own.status, limits(own)) == (200, ('"foreign";q=0', '"foreign";r=0'))


async def test_an_attach_without_a_length(room: Room) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", room.world.gateways[0].port)
    writer.write(
        b"POST %b/products HTTP/1.1\r\nHost: h\r\nX-Account-Id: shop-individual\r\n"
        b"Content-Type: application/json\r\n\r\n" % room.path.encode()
    )
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    assert head.startswith("HTTP/1.1 411 ")
    assert 'RateLimit-Policy: "foreign";q=3\r\n' in head
    assert 'RateLimit: "foreign";r=2\r\n' in head
    assert "Attachgate-Decision: " in head


async def test_in_an_ended_session(room: Room) -> None:
    assert (await room.end()).status == 200
    answer = await room.attach("ally-2")
    assert (answer.status, answer.reason) == (409, "session_ended")
    assert limits(answer) == ('"foreign";q=3', '"foreign";r=2')


@pytest.mark.parametrize(
    ("mode", "status", "remaining"),
    [("refuse", 422, 2), ("error", 500, 1), ("timeout", 504, 1), ("apply_then_drop", 502, 1)],
)
async def test_where_the_upstream_fails(room: Room, mode: str, status: int, remaining: int) -> None:
    await room.world.fault("attach", mode)
    answer = await room.attach("ally-2")
    assert answer.status == status
    assert limits(answer) == ('"foreign";q=3', f'"foreign";r={remaining}')
    assert answer.headers["Attachgate-Decision"]


@pytest.mark.parametrize("session", ["of another", "invented"])
async def test_of_a_session_that_is_not_ones_own_the_count_is_not_told(world: World, session: str) -> None:
    """The cap is the asking account's own; what remains is no business of its."""
    other = await world.room("shop-enterprise")
    assert (await other.attach("ally-1")).status == 200
    room = Room(world, "shop-individual", other.session if session == "of another" else "invented")
    for answer in (await room.attach("ally-2"), await send(room, b"{")):
        assert answer.status in (400, 403, 404)
        assert limits(answer) == ('"foreign";q=3', None)


@pytest.mark.parametrize("account", ["creator-li", "shop-crossborder", "shop-closed", "shop-purecreator"])
async def test_where_no_cap_holds_there_is_none(world: World, account: str) -> None:
    room = await world.room(account)
    for answer in (await room.attach("ally-1"), await send(room, b"{"), await room.attach("no-such-product")):
        assert limits(answer) == (None, None)
        assert answer.headers["Attachgate-Decision"]


async def test_a_session_made_past_the_gateway_is_counted_before_it_is_told(world: World) -> None:
    body = {"account_id": "shop-individual", "session_id": "past"}
    assert (await world.ask("POST", f"{world.upstream.url}/live/sessions", body)).status == 201
    past = f"{world.upstream.url}/live/sessions/past/products"
    assert (await world.ask("POST", past, {"product_ids": ["ally-1", "ally-2"]})).status == 200
    room = Room(world, "shop-individual", "past")
    answer = await room.attach("own-individual-1")
    assert answer.status == 200
    assert limits(answer) == ('"foreign";q=3', '"foreign";r=1')


@pytest.fixture
async def stopped(worlds: Worlds) -> AsyncIterator[Room]:
    """A room whose Redis does not answer any more."""
    redis = await embedded.start()
    room = await (await worlds(redis=redis.url)).room()
    assert (await room.attach("ally-1")).status == 200
    os.kill(redis.pid, signal.SIGSTOP)
    yield room
    os.kill(redis.pid, signal.SIGCONT)
    await room.world.close()
    await redis.close()


@pytest.mark.parametrize("body", [b'{"product_id":"ally-2"}', b'{"product_id":"own-individual-1"}', b"{"])
async def test_while_the_count_can_not_be_had_the_cap_is_told_alone(stopped: Room, body: bytes) -> None:
    answer = await send(stopped, body)
    assert answer.status in (503, 200, 400)
    assert limits(answer) == ('"foreign";q=3', None)


@pytest.mark.parametrize(
    ("mode", "status"), [("refuse", 422), ("error", 500), ("timeout", 504), ("apply_then_drop", 502)]
)
async def test_own_products_say_it_too_where_the_upstream_fails(room: Room, mode: str, status: int) -> None:
    await room.world.fault("attach", mode)
    answer = await room.attach("own-individual-1")
    assert answer.status == status
    assert limits(answer) == ('"foreign";q=3', '"foreign";r=2')


async def test_the_gateways_own_answers_name_no_software_and_are_for_their_caller_alone(room: Room) -> None:
    assert (await room.attach("ally-2", "ally-3")).status == 200
    own = [
        await room.attach("ally-9"),
        await room.attach("ally-9", TE="trailers"),
        await room.attach("nobody"),
        await room.view(),
        await room.ask("GET", "/a//b"),
        await room.ask("GET", "/_gateway/nothing"),
        await room.ask("DELETE", f"{room.path}/products/%2e%2e"),
    ]
    assert [answer.status for answer in own] == [403, 403, 404, 200, 400, 404, 400]
    for answer in own:
        assert "Server" not in answer.headers
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "aiohttp" not in str(answer.headers)


async def test_what_the_upstream_says_of_itself_is_left_as_it_is(room: Room) -> None:
    for answer in (
        await room.ask("GET", room.path),
        await room.attach("ally-1"),
        await room.attach("ally-1", TE="trailers"),
        await room.detach("ally-1"),
    ):
        assert answer.status in (200, 204)
        assert answer.headers.getall("Server") == ["".join(answer.headers.getall("Server"))]
        assert "X-Content-Type-Options" not in answer.headers
