"""A gateway, a platform and a Redis, all real, and a client that speaks HTTP to them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from yarl import URL

from gateway import settings
from gateway.demo import platform
from gateway.ledger import embedded
from gateway.serve import Gateway

CONFIG = """
[listen]
port = 0
admin_port = 0
drain_seconds = 1
{listen}

[upstream]
url = "{upstream}"
connect_timeout_seconds = 0.5
response_timeout_seconds = 0.4
late_apply_seconds = 0.8

[ledger]
url = "{redis}"
hold_seconds = 2
prefix = "{prefix}"
{ledger}

[directory]
ttl_seconds = 0.2
negative_ttl_seconds = 0.1
stale_if_error_seconds = 1

{more}
"""

_numbers = itertools.count(1)


@dataclass
class Answer:
    status: int
    headers: Any
    body: Any
    raw: bytes

    @property
    def reason(self) -> str:
        return str(self.body["reason"])

    @property
    def slots(self) -> dict[str, bool]:
        """Product to whether it is attached."""
        return {slot["product_id"]: slot["attached"] for slot in self.body["slots"]}

    @property
    def notices(self) -> set[str]:
        return {entry["notice"] for entry in self.body["help"]}


@dataclass
class Room:
    """A live-room client of one account, in one session."""

    world: World
    account: str
    session: str

    @property
    def path(self) -> str:
        return f"/live/sessions/{self.session}"

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        return await self.world.ask(method, path, body, self.account, **headers)

    async def attach(self, *products: str, **headers: str) -> Answer:
        body = {"product_id": products[0]} if len(products) == 1 else {"product_ids": list(products)}
        return await self.ask("POST", f"{self.path}/products", body, **headers)

    async def detach(self, product: str) -> Answer:
        return await self.ask("DELETE", f"{self.path}/products/{product}")

    async def replace(self, old: str, new: str) -> Answer:
        return await self.ask("PUT", f"{self.path}/products/{old}", {"product_id": new})

    async def start(self) -> Answer:
        return await self.ask("POST", f"{self.path}/start")

    async def end(self) -> Answer:
        return await self.ask("POST", f"{self.path}/end")

    async def view(self) -> Answer:
        return await self.ask("GET", f"/_gateway/sessions/{self.session}")

    async def listed(self) -> list[str]:
        answer = await self.ask("GET", f"{self.path}/products")
        return [product["product_id"] for product in answer.body["products"]]


@dataclass
class World:
    http: aiohttp.ClientSession
    upstream: platform.Running
    gateways: list[Gateway] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.gateways[0].url

    async def ask(self, method: str, path: str, body: Any = None, account: str | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if account is not None:
            named["X-Account-Id"] = account
        url = path if path.startswith("http") else self.url + path
        async with self.http.request(
            method, URL(url, encoded=True), json=body, headers=named, allow_redirects=False, auto_decompress=False
        ) as response:
            raw = await response.read()
            is_json = "json" in response.headers.get("Content-Type", "")
            decoded = msgspec.json.decode(raw) if is_json and raw and raw[:1] in b"{[" else None
            return Answer(response.status, response.headers, decoded, raw)

    async def room(self, account: str = "shop-individual") -> Room:
        session = f"room-{next(_numbers)}"
        answer = await self.ask("POST", "/live/sessions", {"account_id": account, "session_id": session}, account)
        assert answer.status == 201, answer
        return Room(self, account, session)

    async def control(self, method: str, path: str, body: Any = None) -> Answer:
        answer = await self.ask(method, f"{self.upstream.url}/_platform/{path}", body)
        assert answer.status < 300, answer
        return answer

    async def fault(self, operation: str, mode: str, rate: float = 1, **more: Any) -> None:
        await self.control("POST", "faults", {"operation": operation, "rate": rate, "mode": mode, **more})

    async def well(self) -> None:
        await self.control("DELETE", "faults")

    async def applied(self, session: str, operation: str = "attach") -> list[str]:
        journal = await self.control("GET", "journal")
        return [
            entry["product_id"]
            for entry in journal.body["entries"]
            if entry["session_id"] == session and entry["operation"] == operation
        ]

    async def close(self) -> None:
        """May be called before the test ends, where something of the test's own must outlive the gateways."""
        await self.http.close()
        while self.gateways:
            await self.gateways.pop().close()
        await self.upstream.close()


async def eventually(asked: Callable[[], Awaitable[Any]], true: Callable[[Any], bool], seconds: float = 8) -> Any:
    """Ask again until the answer is as it must become."""
    until = asyncio.get_running_loop().time() + seconds
    while True:
        answer = await asked()
        if true(answer):
            return answer
        assert asyncio.get_running_loop().time() < until, answer
        await asyncio.sleep(0.03)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    redis = asyncio.run(embedded.start())
    yield redis.url
    asyncio.run(redis.close())


Worlds = Callable[..., Awaitable[World]]


@pytest.fixture
async def worlds(tmp_path: Path, redis_url: str) -> AsyncIterator[Worlds]:
    """Makes a world: a platform of its own and as many gateways as asked for, on one ledger."""
    made: list[World] = []

    async def make(
        gateways: int = 1, *, listen: str = "", ledger: str = "", more: str = "", redis: str = redis_url
    ) -> World:
        upstream = await platform.start()
        world = World(aiohttp.ClientSession(), upstream)
        made.append(world)
        prefix = f"t{next(_numbers)}"
        for _ in range(gateways):
            file = tmp_path / f"gateway-{next(_numbers)}.toml"
            file.write_text(
                CONFIG.format(
                    upstream=upstream.url, redis=redis, prefix=prefix, listen=listen, ledger=ledger, more=more
                )
            )
            world.gateways.append(await Gateway.start(*settings.load_all(file, {})))
        return world

    yield make
    for world in made:
        await world.close()


@pytest.fixture
async def world(worlds: Worlds) -> World:
    return await worlds()
