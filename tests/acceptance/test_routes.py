"""`[[routes]]` of an operator's own: an upstream with other paths, methods and bodies than the reference platform's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from gateway import settings
from gateway.serve import Gateway
from tests.acceptance.conftest import Answer

ROUTES = """
[listen]
port = 0
admin_port = 0
[upstream]
url = "{upstream}"
[ledger]
url = "{redis}"
prefix = "{prefix}"
[directory]
account_path = "/who/{{account_id}}"
product_path = "/goods/{{product_id}}"
session_path = "/rooms/{{session_id}}"
list_path = "/rooms/{{session_id}}/shelf"

[[routes]]
operation = "create"
method = "PUT"
path = "/of/{{account_id}}/rooms"

[[routes]]
operation = "create"
method = "POST"
path = "/rooms"

[[routes]]
operation = "attach"
surface = "live_room"
method = "PUT"
path = "/rooms/{{session_id}}/shelf"
product_ids = ["/cart/items/*/sku"]
applied_ids = "/done"
already_there = [409]

[[routes]]
operation = "detach"
method = "POST"
path = "/rooms/{{session_id}}/remove"
product_ids = ["/sku"]
extra_members = ["why"]

[[routes]]
operation = "start"
method = "POST"
path = "/of/{{account_id}}/rooms/{{session_id}}/go"
"""
SHOP = {"shop_id": "mine", "shop_type": "individual", "cross_border": False, "status": "open"}


class Shelf:
    """The upstream: what lies in each room, and each body as it came."""

    def __init__(self) -> None:
        self.rooms: dict[str, dict[str, object]] = {}
        self.shelves: dict[str, list[str]] = {}
        self.bodies: list[object] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/who/{id}", self.who)
        app.router.add_get("/goods/{id}", self.goods)
        app.router.add_get("/rooms/{id}", self.room)
        app.router.add_get("/rooms/{id}/shelf", self.listed)
        app.router.add_put("/of/{account}/rooms", self.create)
        app.router.add_post("/rooms", self.create)
        app.router.add_put("/rooms/{id}/shelf", self.attach)
        app.router.add_post("/rooms/{id}/remove", self.remove)
        app.router.add_post("/of/{account}/rooms/{id}/go", self.go)
        return app

    async def who(self, request: web.Request) -> web.Response:
        return web.json_response({"account_id": request.match_info["id"], "kind": "official", "shop": SHOP})

    async def goods(self, request: web.Request) -> web.Response:
        return web.json_response(_good(request.match_info["id"]))

    async def room(self, request: web.Request) -> web.Response:
        found = self.rooms.get(request.match_info["id"])
        return web.json_response(found or {}, status=200 if found else 404)

    async def listed(self, request: web.Request) -> web.Response:
        return web.json_response({"products": [_good(sku) for sku in self.shelves[request.match_info["id"]]]})

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        account = request.match_info.get("account") or body["account_id"]
        session = body["session_id"]
        self.rooms[session] = {"session_id": session, "account_id": account, "state": "preparing"}
        self.shelves[session] = []
        return web.json_response(self.rooms[session], status=201)

    async def attach(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        skus, shelf = [item["sku"] for item in body["cart"]["items"]], self.shelves[request.match_info["id"]]
        if set(skus) & set(shelf):
            return web.json_response({"error": "there"}, status=409)
        done = [sku for sku in skus if not sku.endswith("sold-out")]
        shelf += done
        return web.json_response({"done": done})

    async def remove(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.shelves[request.match_info["id"]].remove(body["sku"])
        return web.json_response({})

    async def go(self, request: web.Request) -> web.Response:
        self.rooms[request.match_info["id"]]["state"] = "live"
        return web.json_response({})


def _good(sku: str) -> dict[str, str]:
    return {"product_id": sku, "shop_id": "mine" if sku.startswith("own") else "theirs"}


class Merchant:
    def __init__(self, http: aiohttp.ClientSession, url: str, shelf: Shelf) -> None:
        self.http, self.url, self.shelf = http, url, shelf

    async def ask(self, method: str, path: str, body: object = None, account: str = "a1") -> Answer:
        async with self.http.request(method, self.url + path, json=body, headers={"X-Account-Id": account}) as answer:
            raw = await answer.read()
            return Answer(answer.status, answer.headers, json.loads(raw) if raw else None, raw)

    async def attach(self, *skus: str) -> Answer:
        items = [{"sku": sku} for sku in skus]
        return await self.ask("PUT", "/rooms/r1/shelf", {"cart": {"items": items}})

    async def slots(self) -> dict[str, bool]:
        return (await self.ask("GET", "/_gateway/sessions/r1")).slots


@pytest.fixture
async def merchant(tmp_path: Path, redis_url: str) -> AsyncIterator[Merchant]:
    shelf = Shelf()
    runner = web.AppRunner(shelf.app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream = "http://{}:{}".format(*runner.addresses[0])
    file = tmp_path / "gateway.toml"
    file.write_text(ROUTES.format(upstream=upstream, redis=redis_url, prefix=tmp_path.name.replace("_", "-")[-32:]))
    gateway = await Gateway.start(*settings.load_all(file, {}))
    async with aiohttp.ClientSession() as http:
        merchant = Merchant(http, gateway.url, shelf)
        body = {"session_id": "r1", "account_id": "a1"}
        assert (await merchant.ask("POST", "/rooms", body)).status == 201
        yield merchant
    await gateway.close()
    await runner.cleanup()


async def test_products_deep_in_a_body_are_counted_by_what_the_answer_lists(merchant: Merchant) -> None:
    answer = await merchant.attach("ally-1", "own-1", "ally-sold-out")
    assert (answer.status, answer.headers["RateLimit"]) == (200, '"foreign";r=2')
    assert await merchant.slots() == {"ally-1": True}
    assert (await merchant.attach("ally-1")).status == 409
    assert await merchant.slots() == {"ally-1": True}
    assert (await merchant.attach("ally-2", "ally-3", "ally-4")).reason == "foreign_cap_reached"
    assert merchant.shelf.shelves["r1"] == ["ally-1", "own-1"]


async def test_a_detach_that_names_its_product_in_the_body_gives_its_slot_back(merchant: Merchant) -> None:
    assert (await merchant.attach("ally-1", "ally-2", "ally-3")).status == 200
    answer = await merchant.ask("POST", "/rooms/r1/remove", {"sku": "ally-2", "why": "sold", "other": 1})
    assert answer.status == 200
    assert merchant.shelf.bodies[-1] == {"sku": "ally-2", "why": "sold"}
    assert await merchant.slots() == {"ally-1": True, "ally-3": True}
    assert (await merchant.attach("ally-4")).status == 200
    assert (await merchant.attach("ally-5")).reason == "foreign_cap_reached"
    assert (await merchant.ask("POST", "/of/a1/rooms/r1/go")).status == 200
    assert (await merchant.ask("POST", "/rooms/r1/remove", {"sku": "ally-4"})).status == 200
    assert await merchant.slots() == {"ally-1": True, "ally-3": True, "ally-4": False}


async def test_a_create_with_the_account_in_its_path(merchant: Merchant) -> None:
    assert (await merchant.ask("PUT", "/of/a1/rooms", {"session_id": "r2"})).status == 201
    assert merchant.shelf.rooms["r2"]["account_id"] == "a1"


async def test_an_account_in_the_path_serves_only_itself(merchant: Merchant) -> None:
    for method, path in (("PUT", "/of/a2/rooms"), ("POST", "/of/a2/rooms/r1/go")):
        body = {"session_id": "r3", "account_id": "a1"} if method == "PUT" else None
        answer = await merchant.ask(method, path, body)
        assert (answer.status, answer.reason) == (403, "not_account_owner")
    assert "r3" not in merchant.shelf.rooms
    assert merchant.shelf.rooms["r1"]["state"] == "preparing"
