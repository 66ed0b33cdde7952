"""Three gateways, restarted one after the other while sessions race: nobody is refused who should be served, nothing
is left in doubt, and there are never four.

200 sessions and one restart of each in every run; 2,000 and ten with ATTACHGATE_LONG=1.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio as redis

from gateway.ledger import embedded
from tests.admission.world import until
from tests.ports import free_port
from tests.promise.balancer import Balancer
from tests.promise.conftest import CONFIG, start, until_answers

LONG = bool(os.environ.get("ATTACHGATE_LONG"))
SESSIONS, ROUNDS = (2000, 10) if LONG else (200, 1)
AT_ONCE = 20
PRODUCTS = 6
HOLD_SECONDS = 60.0
"""So long would a settlement that a restart lost be seen as pending."""


@dataclass
class Fleet:
    """Gateways that are stopped and started while `balancer` asks them."""

    http: aiohttp.ClientSession
    platform: str
    redis: redis.Redis
    ports: list[int]
    files: list[Path]
    balancer: Balancer
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    async def begin(self, number: int) -> asyncio.subprocess.Process:
        process = await start("serve", "--config", str(self.files[number]))
        await until_answers(self.http, f"http://127.0.0.1:{self.ports[number]}/live/sessions/x")
        return process

    async def stop(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.processes[number].terminate()
        self.codes.append(await asyncio.wait_for(self.processes[number].wait(), 20))

    async def restart_each(self) -> None:
        for number in range(len(self.processes)):
            await self.stop(number)
            self.processes[number] = await self.begin(number)

    async def platform_has(self, path: str, body: Any) -> None:
        async with self.http.request("PUT" if body.get("shop_id") else "POST", self.platform + path, json=body) as said:
            assert said.status in (200, 204)

    async def pending(self) -> int:
        keys = [key async for key in self.redis.scan_iter("ag:{*}:p")]
        return sum([await self.redis.zcard(key) for key in keys])

    async def events(self, kind: bytes) -> int:
        found = 0
        async for key in self.redis.scan_iter("ag:{*}:e"):
            found += sum(fields[b"e"] == kind for _, fields in await self.redis.xrange(key))
        return found


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    server = await embedded.start()
    platform_port = free_port()
    upstream = f"http://127.0.0.1:{platform_port}"
    platform = await start("platform", "--port", str(platform_port))
    ports, files = [free_port() for _ in range(3)], []
    text = CONFIG.replace("hold_seconds = 2.5", f"hold_seconds = {HOLD_SECONDS}")
    text = text.replace("response_timeout_seconds = 0.5", "response_timeout_seconds = 20")
    for port in ports:
        files.append(tmp_path / f"gateway-{port}.toml")
        files[-1].write_text(text.format(port=port, admin_port=free_port(), upstream=upstream, redis=server.url))
    client = redis.Redis.from_url(server.url)
    balancer = Balancer(ports, "shop-individual")
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            fleet = Fleet(http, upstream, client, ports, files, balancer)
            await until_answers(http, upstream)
            fleet.processes = list(await asyncio.gather(*map(fleet.begin, range(3))))
            yield fleet
            await asyncio.gather(*map(fleet.stop, range(3)))
            assert await fleet.pending() == 0
            assert set(fleet.codes) == {0}
    finally:
        balancer.close()
        for process in (*fleet.processes, platform):
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
        await client.aclose()
        await server.close()


async def race(balancer: Balancer, session_id: str) -> None:
    """One session's life: six clients for three places, one of its own products, a change of mind, and the start."""
    path = f"/live/sessions/{session_id}/products"

    async def attach(product: str) -> int:
        return (await balancer.ask("POST", path, {"product_id": product}))[0]

    status, said = await balancer.ask(
        "POST", "/live/sessions", {"account_id": "shop-individual", "session_id": session_id}
    )
    assert status == 201, f"{said}: 409 where it had been made, and its connection was closed without an answer"
    foreign = [f"race-{number}" for number in range(PRODUCTS)]
    own, *statuses = await asyncio.gather(attach("own-individual-1"), *map(attach, foreign))
    assert own == 200
    assert sorted(statuses) == [200] * 3 + [403] * (PRODUCTS - 3), statuses
    got = [product for product, status in zip(foreign, statuses, strict=True) if status == 200]
    status, said = await balancer.ask("DELETE", f"{path}/{got[0]}")
    assert status in (204, 404), (status, said)
    other = next(product for product in foreign if product not in got)
    for _ in range(100):
        status = await attach(other)
        if status == 200:
            break
        balancer.again["a slot that was on its way back"] += 1
        await asyncio.sleep(0.05)
    assert status == 200, "its place came back"
    status, said = await balancer.ask("POST", f"/live/sessions/{session_id}/start")
    assert status == 200, (status, said)
    status, view = await balancer.ask("GET", f"/_gateway/sessions/{session_id}")
    assert (status, view["used"]) == (200, 3), view


def most_at_once(entries: list[dict[str, Any]]) -> dict[str, int]:
    """For each session, how many foreign products it had at one time, by the platform's own journal."""
    rooms: dict[str, set[str]] = {}
    most: dict[str, int] = {}
    for entry in entries:
        room = rooms.setdefault(entry["session_id"], set())
        product = entry["product_id"] or ""
        if product.startswith("race-"):
            (room.add if entry["operation"] == "attach" else room.discard)(product)
        most[entry["session_id"]] = max(most.get(entry["session_id"], 0), len(room))
    return most


async def test_a_rolling_restart_refuses_nobody_and_leaves_nothing_in_doubt(fleet: Fleet) -> None:
    for number in range(PRODUCTS):
        product = {"product_id": f"race-{number}", "shop_id": "ally-shop-1"}
        await fleet.platform_has(f"/_platform/products/race-{number}", product)
    slow = {"operation": "all", "rate": 0.2, "mode": "slow", "delay_ms": 100, "seed": 7}
    await fleet.platform_has("/_platform/faults", slow)
    restarted, raced = asyncio.Event(), 0

    async def sessions(worker: int) -> None:
        nonlocal raced
        while raced < SESSIONS or not restarted.is_set():
            raced += 1
            await race(fleet.balancer, f"rolling-{raced}")

    async def restarts() -> None:
        for _ in range(ROUNDS):
            await fleet.restart_each()
        restarted.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(restarts())
        for worker in range(AT_ONCE):
            group.create_task(sessions(worker))

    async def nothing_pending() -> bool:
        return await fleet.pending() == 0

    await until(nothing_pending)  # else a settlement was lost: its record waits for the hold to end
    assert await fleet.events(b"in_doubt") == 0
    async with fleet.http.get(f"{fleet.platform}/_platform/journal") as answer:
        most = most_at_once((await answer.json())["entries"])
    assert len(most) == raced >= SESSIONS
    assert set(most.values()) == {3}
    assert fleet.codes == [0] * (3 * ROUNDS)
    print(f"{fleet.balancer.asked} requests, {raced} sessions, tried again: {dict(fleet.balancer.again)}")
    assert fleet.balancer.asked > 2000
