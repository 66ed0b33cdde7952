"""A gateway process whose Redis is dead, stalled or killed.

What needs a count is refused within `ledger.timeout_seconds`, and at once as soon as the breaker is open; what needs
none goes on as fast as ever; readiness says why; and all is well again by itself.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.admission.conftest import bare, redis_server
from tests.admission.world import World
from tests.serve.conftest import Serving
from tests.topologies.redis_processes import Node, running, until

__all__ = ["bare", "redis_server"]

TIMEOUT_SECONDS = 0.25
SLACK_SECONDS = 0.25
"""For a machine that others use too."""
MANY = 1000 if os.environ.get("ATTACHGATE_LONG") else 30
CONFIG = """
[listen]
port = {port}
admin_port = {admin_port}
drain_seconds = 0.1
[upstream]
url = "{upstream}"
connect_timeout_seconds = 0.5
response_timeout_seconds = 2.0
late_apply_seconds = 0.2
[ledger]
url = "redis://127.0.0.1:{redis}/0"
hold_seconds = 5.0
timeout_seconds = {timeout}
"""


@dataclass
class Room:
    """A gateway process and a Redis that may be killed. `warning`: what the gateway said of that Redis at start.
    `took`: how long each kind of request took."""

    gateway: Serving
    redis: Node
    warning: str
    took: dict[str, list[float]] = field(default_factory=dict)

    async def ask(self, kind: str, account: str, product: str, session: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.gateway.port}/live/sessions/{session}/products"
        began = time.monotonic()
        async with self.gateway.world.http.post(
            url, json={"product_id": product}, headers={"X-Account-Id": account}
        ) as answer:
            body: Any = await answer.json(content_type=None)
        self.took.setdefault(kind, []).append(time.monotonic() - began)
        return answer.status, str(body.get("reason", ""))

    async def counted(self, product: str = "ally-1") -> tuple[int, str]:
        return await self.ask("counted", "shop-individual", product, "s1")

    async def uncounted(self) -> set[tuple[int, str]]:
        """An own product, a creator's, and one that is refused outright, side by side."""
        return set(
            await asyncio.gather(
                self.ask("own", "shop-individual", "own-individual-1", "s1"),
                self.ask("creator", "creator-li", "ally-1", "free"),
                self.ask("refused", "shop-flagship", "ally-1", "none"),
            )
        )

    async def ready(self) -> tuple[int, str]:
        status, body = await self.gateway.admin("/readyz")
        return status, body.decode()

    async def is_ready(self, status: int = 200) -> bool:
        return (await self.ready())[0] == status


ALL_GO_ON = {(200, ""), (403, "foreign_not_allowed")}


@pytest.fixture
async def room(bare: World, tmp_path: Path) -> AsyncIterator[Room]:
    for session, account in (("s1", "shop-individual"), ("free", "creator-li"), ("none", "shop-flagship")):
        await bare.session(session, account)
    async with running(Node({"maxmemory-policy": "volatile-lru"})) as (redis,):
        gateway = Serving(bare, tmp_path)
        gateway.file.write_text(
            CONFIG.format(
                port=gateway.port,
                admin_port=gateway.admin_port,
                upstream=bare.platform.url,
                redis=redis.port,
                timeout=TIMEOUT_SECONDS,
            )
        )
        process = await gateway.start()
        try:
            await gateway.line(process, "listening")
            setting = await gateway.line(process, "ledger_setting")
            yield Room(gateway, redis, setting["warning"])
        finally:
            process.terminate()
            assert await gateway.ended(process) == 0


async def stalled(redis: Node) -> Callable[[], Awaitable[None]]:
    redis.stall()

    async def over() -> None:
        redis.go_on()

    return over


async def killed(redis: Node) -> Callable[[], Awaitable[None]]:
    redis.kill()

    async def over() -> None:
        await redis.start()

    return over


@pytest.mark.parametrize("how", [stalled, killed], ids=lambda one: one.__name__)
async def test_a_dead_redis_costs_the_limit_and_then_nothing(
    room: Room, how: Callable[[Node], Awaitable[Callable[[], Awaitable[None]]]]
) -> None:
    assert "maxmemory-policy volatile-lru" in room.warning
    assert await room.counted("ally-1") == (200, "")
    assert (await room.ready())[0] == 200
    for _ in range(MANY):
        assert await room.uncounted() == ALL_GO_ON
    before, room.took = room.took, {}

    over = await how(room.redis)
    said = Counter(await asyncio.gather(*(room.counted("ally-2") for _ in range(20))))
    assert said == {(503, "ledger_unavailable"): 20}
    assert max(room.took["counted"]) < TIMEOUT_SECONDS + SLACK_SECONDS
    assert await room.uncounted() == ALL_GO_ON
    await until(lambda: room.is_ready(503))
    assert "Redis" in (await room.ready())[1]

    await until(lambda: breaker_is_open(room))
    room.took.clear()
    for _ in range(MANY):
        assert await room.counted("ally-2") == (503, "ledger_unavailable")
        assert await room.uncounted() == ALL_GO_ON
    assert median(room.took["counted"]) < TIMEOUT_SECONDS / 5
    assert max(room.took["counted"]) < TIMEOUT_SECONDS + SLACK_SECONDS
    for kind in ("own", "creator", "refused"):
        assert median(room.took[kind]) < median(before[kind]) + 0.01, "nobody waits for a count that can't come"

    await over()
    await until(room.is_ready)
    assert await room.counted("ally-2") == (200, "")
    assert [(await room.counted(f"ally-{n}"))[0] for n in (3, 4)] == [200, 403]


async def breaker_is_open(room: Room) -> bool:
    began = time.monotonic()
    await room.counted("ally-2")
    return time.monotonic() - began < TIMEOUT_SECONDS / 5
