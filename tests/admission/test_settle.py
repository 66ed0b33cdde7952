"""A settlement is asked for at once, and its first answer is the last word, or a task goes on from there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway import config
from gateway.admission.settle import Settlements
from gateway.errors import LedgerUnavailable
from gateway.ledger.replies import LostAnswer
from gateway.ledger.steps import Ledger, Step
from gateway.reconciler.opening import OnTheirWay

STEPS = [Step("t", "ally-1")]


class Redis:
    """Keeps the calls, for the test to answer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, asyncio.Future[Any]]] = []
        self.asked = asyncio.Event()
        self.broken = 0

    def call(self, script: Any, keys: Any, arguments: Any) -> asyncio.Future[Any]:
        if self.broken:
            self.broken -= 1
            raise RuntimeError("unforeseen")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.calls.append((script.name, future))
        self.asked.set()
        return future

    async def next(self) -> asyncio.Future[Any]:
        await self.asked.wait()
        self.asked.clear()
        return self.calls[-1][1]


class Around:
    """What a settlement tells others of."""

    def __init__(self) -> None:
        self.on_their_way = OnTheirWay()
        self.compared: list[str] = []
        self.expected: list[str] = []
        self.left: list[str] = []

    async def compare(self, session_id: str, operation: str) -> None:
        self.compared.append(session_id)

    def expect(self, session_id: str, seconds: float) -> None:
        self.expected.append(session_id)

    def add(self, session_id: str) -> None:
        self.left.append(session_id)


class Stage:
    def __init__(self, hold_seconds: float = 10.0) -> None:
        self.redis, self.around = Redis(), Around()
        ledger = Ledger(cast(Any, self.redis), config.Ledger("redis://x"), 0.0)
        around = cast(Any, self.around)
        self.settlements = Settlements(ledger, around, around, around, hold_seconds)
        self.settlements.begin("s1", "op", STEPS)

    def commit(self) -> asyncio.Future[Any]:
        return self.settlements.commit("s1", "op", "attached", STEPS)

    @property
    def on_its_way(self) -> bool:
        return len(self.around.on_their_way) == 1

    @property
    def counts(self) -> tuple[int, int, int]:
        """Calls, what a drain would wait for, and tasks of the settlements."""
        return len(self.redis.calls), len(self.settlements.tasks), len(asyncio.all_tasks()) - 1


async def test_a_commit_is_asked_at_once_and_needs_no_task() -> None:
    stage = Stage()
    settled = stage.commit()
    assert (stage.counts, stage.on_its_way) == ((1, 1, 0), True)
    (await stage.redis.next()).set_result([b"settled", 2])
    assert stage.on_its_way, "until the reply was taken in"
    assert (await settled).used == 2
    assert (stage.counts, stage.on_its_way, stage.around.expected) == ((1, 0, 0), False, [])


async def test_a_commit_that_must_be_looked_at_tells_the_reconciler() -> None:
    stage = Stage()
    settled = stage.commit()
    (await stage.redis.next()).set_result([b"pending", 1])
    assert (await settled).said == "pending"
    assert (stage.counts, stage.on_its_way, stage.around.expected) == ((1, 0, 0), False, ["s1"])


Begin = Callable[[Stage], "asyncio.Future[Any]"]
BEGINNINGS: list[tuple[Begin, str, list[Any]]] = [
    (Stage.commit, "commit", [b"settled", 1]),
    (lambda stage: stage.settlements.release("s1", "op", 1), "release", [b"released", 1]),
    (lambda stage: stage.settlements.doubt("s1", "op", STEPS), "doubt", [b"in_doubt", 1]),
]


@pytest.mark.parametrize(("begin", "script", "reply"), BEGINNINGS, ids=["commit", "release", "doubt"])
async def test_a_lost_answer_is_asked_for_again_at_once(begin: Begin, script: str, reply: list[Any]) -> None:
    stage = Stage()
    held = script != "release"
    settled = begin(stage)
    (await stage.redis.next()).set_exception(LostAnswer("lost"))
    again = await stage.redis.next()
    assert (stage.counts, stage.on_its_way) == ((2, 1, 1), held)
    again.set_result(reply)
    assert (await settled).said == reply[0].decode()
    assert await stage.settlements.tasks.drain(1.0) == 0
    assert (stage.counts, [name for name, _ in stage.redis.calls]) == ((2, 0, 0), [script, script])
    assert stage.on_its_way == (script == "doubt"), "what is in doubt may still be applied"


async def test_a_lost_session_is_opened_and_asked_again() -> None:
    stage = Stage()
    settled = stage.commit()
    (await stage.redis.next()).set_result([b"missing"])
    again = await stage.redis.next()
    assert (stage.around.compared, stage.on_its_way) == (["s1"], True)
    again.set_result([b"settled", 1])
    assert ((await settled).said, stage.counts, stage.on_its_way) == ("settled", (2, 0, 0), False)


async def test_while_redis_is_away_it_is_tried_until_the_reconciler_looks() -> None:
    stage = Stage(hold_seconds=0.06)
    settled = stage.commit()
    for _ in range(2):
        assert stage.on_its_way
        (await stage.redis.next()).set_exception(LedgerUnavailable("away"))
    assert await settled is None
    assert (stage.counts, stage.on_its_way, stage.around.left) == ((2, 0, 0), False, ["s1"])


@pytest.mark.parametrize("reply", [RuntimeError("unforeseen"), [], None], ids=["an error", "nothing", "None"])
async def test_what_nobody_foresaw_ends_it_and_is_said(reply: Any, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    settled = stage.commit()
    future = await stage.redis.next()
    if isinstance(reply, Exception):
        future.set_exception(reply)
    else:
        future.set_result(reply)
    await asyncio.wait([settled])
    assert settled.exception() is not None
    assert (stage.counts, stage.on_its_way) == ((1, 0, 0), False)


async def test_a_ledger_that_can_not_even_be_asked_costs_nobody_an_answer() -> None:
    stage = Stage()
    stage.redis.broken = 1
    settled = stage.commit()
    (await stage.redis.next()).set_result([b"settled", 1])
    assert ((await settled).used, stage.on_its_way) == (1, False)
    assert await stage.settlements.tasks.drain(1.0) == 0


async def test_a_gateway_that_stops_waits_for_it_and_then_lets_go() -> None:
    stage = Stage()
    settled = stage.commit()
    asyncio.get_running_loop().call_later(0.01, stage.redis.calls[0][1].set_exception, LostAnswer("lost"))
    assert await stage.settlements.tasks.drain(0.05) == 1
    assert (stage.counts, stage.on_its_way) == ((2, 1, 1), True)
    await stage.settlements.tasks.cancel()
    await asyncio.wait([settled])
    assert (settled.cancelled(), stage.counts, stage.on_its_way) == (True, (2, 0, 0), False)


async def test_one_that_is_let_go_before_its_first_reply_leaves_nothing_behind() -> None:
    stage = Stage()
    settled = stage.commit()
    await stage.settlements.tasks.cancel()
    assert (await settled, stage.redis.calls[0][1].cancelled()) == (None, True)
    assert (stage.counts, stage.on_its_way) == ((1, 0, 0), False)
