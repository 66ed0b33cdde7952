"""The list of products for the showcase (N8): without what a restricted account may not add, or no list at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from gateway.config import Directory
from tests.admission.world import ACCOUNT, Said, World

OWN = {"product_id": "own-individual-1", "shop_id": "individual", "price": 9.5, "name": "鞋"}
FOREIGN = {"product_id": "ally-1", "shop_id": "ally-shop-1"}
LIST = {"products": [OWN, FOREIGN], "total": 2}


@dataclass
class Shelf:
    """An upstream that has nothing but this list. `asked` holds the header fields of each request."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request)
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@pytest.fixture
async def shelf(bare: World) -> AsyncIterator[Shelf]:
    shelf = Shelf(json.dumps(LIST, ensure_ascii=False).encode())
    server = RawTestServer(shelf.answer)
    await server.start_server()
    await bare.gateway(str(server.make_url("")).rstrip("/"), directory=Directory(url=bare.platform.url))
    yield shelf
    await server.close()


async def ask(world: World, account: str = ACCOUNT, method: str = "GET", **headers: str) -> Said:
    return await world.ask(method, f"/accounts/{account}/showcase/addable", account=account, headers=headers)


async def test_a_restricted_account_sees_its_own(bare: World, shelf: Shelf) -> None:
    said = await ask(bare)
    assert (said.status, said.body) == (200, {"products": [OWN], "total": 2})


@pytest.mark.parametrize("account", ["creator-li", "shop-purecreator", "shop-crossborder", "shop-closed"])
async def test_others_get_it_byte_for_byte(bare: World, shelf: Shelf, account: str) -> None:
    shelf.body = b'  {"products": [ {"product_id":"x"} , 1e3, "\xe9\x9e\x8b" ] }\n'
    shelf.headers = {"ETag": '"1"', "X-Odd": "yes", "Content-Type": "text/odd"}
    said = await ask(bare, account)
    assert (said.status, said.raw) == (200, shelf.body)
    assert (said.headers["ETag"], said.headers["X-Odd"], said.headers["Content-Type"]) == ('"1"', "yes", "text/odd")


async def test_a_row_that_does_not_say_whose_it_is_is_not_shown(bare: World, shelf: Shelf) -> None:
    rows: list[Any] = [
        OWN,
        None,
        "own-individual-1",
        [],
        {},
        {"product_id": "a"},
        {"shop_id": "individual"},
        {"product_id": 1, "shop_id": "individual"},
        {"product_id": "a", "shop_id": ["individual"]},
        {"product_id": "a", "shop_id": "Individual"},
        {"product_id": "a", "shop_id": "individual "},
    ]
    shelf.body = json.dumps({"products": rows}).encode()
    assert (await ask(bare)).body == {"products": [OWN]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 200),
        (b"not json", 200),
        (b"[]", 200),
        (b'{"items":[]}', 200),
        (b'{"products":null}', 200),
        (b'{"products":"abc"}', 200),
        (b'{"products":{"a":{}}}', 200),
        (b'{"products":[{"product_id":"\xff"}]}', 200),
        (b'{"products":' + b"[" * 100_000, 200),
        (json.dumps(LIST).encode("utf-16"), 200),
        (json.dumps(LIST).encode(), 206),
        (json.dumps(LIST).encode(), 203),
        (b"", 204),
    ],
)
async def test_a_list_that_can_not_be_read_is_none(bare: World, shelf: Shelf, body: bytes, status: int) -> None:
    shelf.body, shelf.status = body, status
    said = await ask(bare)
    assert (said.status, said.reason) == (502, "upstream_unreachable")
    assert b"ally-1" not in said.raw


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity"])
@pytest.mark.parametrize("really", [True, False])
async def test_a_compressed_list_is_none(bare: World, shelf: Shelf, coding: str, really: bool) -> None:
    """It was not asked for, and is not let through unread."""
    shelf.headers = {"Content-Encoding": coding}
    if really:
        shelf.body = gzip.compress(shelf.body)
    said = await ask(bare, **{"Accept-Encoding": "gzip, br"})
    assert (said.status, said.reason) == (502, "upstream_unreachable")
    assert "Accept-Encoding" not in shelf.asked[0].headers


async def test_parts_and_older_lists_are_not_asked_for(bare: World, shelf: Shelf) -> None:
    shelf.headers = {"ETag": '"1"', "Last-Modified": "x", "Accept-Ranges": "bytes", "Content-MD5": "x", "Digest": "x"}
    conditions = {"Range": "bytes=0-10", "If-None-Match": '"1"', "If-Modified-Since": "x", "If-Range": "x"}
    said = await ask(bare, **conditions)
    assert said.status == 200
    assert not set(conditions) & set(shelf.asked[0].headers)
    assert not set(shelf.headers) & set(said.headers), "they are not true of what is left"


@pytest.mark.parametrize("status", [304, 404, 500])
async def test_what_is_no_list_goes_through(bare: World, shelf: Shelf, status: int) -> None:
    shelf.status, shelf.body = status, b'{"error":"x"}'
    said = await ask(bare)
    assert said.status == status


async def test_two_lists_in_one_are_read_as_the_client_gets_them(bare: World, shelf: Shelf) -> None:
    shelf.body = b'{"products":[],"products":[%s]}' % json.dumps(FOREIGN).encode()
    assert (await ask(bare)).raw == b'{"products":[]}'


async def test_a_huge_list(bare: World, shelf: Shelf) -> None:
    rows = [{"product_id": f"p{n}", "shop_id": "individual" if n % 3 == 0 else "ally-shop-1"} for n in range(30_000)]
    shelf.body = json.dumps({"products": rows}).encode()
    assert len((await ask(bare)).body["products"]) == 10_000


async def test_a_list_over_the_limit_is_none(bare: World, shelf: Shelf) -> None:
    shelf.body = json.dumps({"products": [FOREIGN], "pad": "x" * 8_400_000}).encode()
    assert (await ask(bare)).reason == "upstream_unreachable"


async def test_head_shows_nothing(bare: World, shelf: Shelf) -> None:
    said = await ask(bare, method="HEAD")
    assert (said.status, said.raw) == (200, b"")


async def test_the_list_of_another_account(bare: World, shelf: Shelf) -> None:
    for method in ("GET", "HEAD", "POST"):
        said = await bare.ask(method, "/accounts/creator-li/showcase/addable")
        assert said.status in (403, 405)
    assert shelf.asked == []


async def test_a_get_with_a_body_is_refused(bare: World, shelf: Shelf) -> None:
    said = await bare.ask("GET", f"/accounts/{ACCOUNT}/showcase/addable", {"a": 1})
    assert said.status == 400
    assert shelf.asked == []
