"""Operations whose outcome nobody knows are settled by the upstream's list, once, and never by an error."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.config import Ledger as LedgerConfig
from gateway.errors import SessionUnknown, UpstreamTimeout, UpstreamUnreachable
from gateway.ledger.steps import BUCKETS, Ledger, Step, bucket_of
from gateway.policy.model import Product
from gateway.reconciler import doubt
from gateway.reconciler.doubt import Reconciler
from tests.admission.world import World, until

BUCKET = bucket_of("s1")


@pytest.fixture
async def opened(world: World) -> World:
    """The session is in the ledger, and the gateway's own reconciler stands still."""
    gateway = world.gateways[0]
    await gateway._loops.cancel()
    await gateway._opening.open("s1", await gateway._directory.account("shop-individual"), "test")
    return world


def reconciler(world: World, *, lease_seconds: float = 5.0) -> Reconciler:
    gateway = world.gateways[0]
    return Reconciler(world.ledger, gateway._directory, gateway._list, gateway.telemetry, lease_seconds=lease_seconds)


async def in_doubt(world: World, product: str = "ally-1", operation: str = "op") -> None:
    """Its gateway said so, and it is due."""
    assert (await world.ledger.reserve("s1", operation, 3, [product])).said == "held"
    await world.ledger.doubt("s1", operation, [Step("t", product)])
    await due(world)


async def due(world: World) -> None:
    key = world.ledger.pending_key(BUCKET)
    for name in await world.redis.zrange(key, 0, -1):
        await world.redis.zadd(key, {name: 1})


async def pause(world: World) -> float:
    """In how many seconds the only pending operation is due."""
    key = world.ledger.pending_key(BUCKET)
    ((_, score),) = await world.redis.zrange(key, 0, -1, withscores=True)
    seconds, micros = await world.redis.time()
    return float(score) / 1000 - (seconds + micros / 1e6)


@pytest.mark.parametrize("applied", [True, False])
async def test_what_a_killed_gateway_left_held_is_settled_both_ways(opened: World, applied: bool) -> None:
    await opened.ledger.reserve("s1", "killed", 3, ["ally-1"])
    if applied:
        opened.platform.platform.store.attach("s1", ["ally-1"], 0.0)
    one = reconciler(opened)
    await one.visit(BUCKET)
    assert (await opened.snapshot()).records["killed"][0].in_doubt is False, "its hold is not over"  # type: ignore[union-attr]
    await due(opened)
    await one.visit(BUCKET)
    assert (await opened.snapshot()).records["killed"][0].in_doubt is True, "it may still be applied"  # type: ignore[union-attr]
    await one.visit(BUCKET)
    assert await opened.used() == {"ally-1"}
    await due(opened)
    await one.visit(BUCKET)
    assert await opened.used() == ({"ally-1"} if applied else set())
    assert await opened.pending() == []


async def test_another_gateway_finds_what_a_killed_one_left(bare: World) -> None:
    await bare.session()
    await bare.gateway()
    killed = await bare.gateway()
    bare.fault("slow", delay_ms=300)
    task = asyncio.ensure_future(bare.attach("ally-1", at=killed))
    await until(lambda: len(killed._opening.on_their_way) == 1)
    killed._settlements.commit = lambda *arguments: asyncio.ensure_future(asyncio.sleep(0))  # type: ignore[assignment, method-assign, return-value]
    await task
    killed._opening.on_their_way._sessions.clear()
    await bare.settled()
    assert await bare.used() == {"ally-1"}


Failing = Callable[[str], Awaitable[Any]]


def raising(error: Exception) -> Failing:
    async def fail(session_id: str) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("asked", ["list", "session"])
@pytest.mark.parametrize(
    "error",
    [UpstreamUnreachable("one page of several"), UpstreamTimeout("…"), SessionUnknown("…"), RuntimeError("unforeseen")],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_settles_nothing_and_is_asked_again_later(
    opened: World, asked: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_doubt(opened)
    one = reconciler(opened)
    with monkeypatch.context() as patch, capture_logs() as logs:
        if asked == "list":
            patch.setattr(one, "_list_products", raising(error))
        else:
            patch.setattr(opened.gateways[0]._directory, "fresh_session", raising(error))
        pauses = []
        for _ in range(8):
            await due(opened)
            await one.visit(BUCKET)
            pauses.append(round(await pause(opened)))
    assert {line["event"] for line in logs} == {"settlement_postponed"}
    assert pauses == [1, 2, 4, 8, 16, 32, *((64, 128) if isinstance(error, SessionUnknown) else (60, 60))]
    assert await opened.used() == {"ally-1"}
    await due(opened)
    await one.visit(BUCKET)
    assert await opened.used() == set()
    assert not one._failures


async def test_one_bad_operation_keeps_nobody_waiting(opened: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubt, "MAX_AT_ONCE", 2)
    await in_doubt(opened, "ally-1", "good")
    key = opened.ledger.pending_key(BUCKET)
    await opened.redis.zadd(key, {b"s1 bad 1": 1, b"\xff": 1})
    for bucket in range(0, 1024, 7):
        await opened.redis.zadd(opened.ledger.pending_key(bucket), {b"not three words at all": 1})
    one = reconciler(opened)
    with capture_logs() as logs:
        run = asyncio.ensure_future(one.run())
        try:
            await until(lambda: any(line["event"] == "reconciler_failed" for line in logs))
            await opened.redis.zrem(key, b"\xff")
            await until(lambda: _settled(opened))
            assert not run.done()
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            await one.close()


async def _settled(world: World) -> bool:
    return await world.used() == set()


async def test_a_slow_list_holds_up_only_its_own(opened: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await in_doubt(opened)
    hung = asyncio.Event()
    lists = opened.gateways[0]._list

    async def slow(session_id: str) -> tuple[Product, ...]:
        if session_id == "s1":
            hung.set()
            await asyncio.sleep(60)
        return await lists(session_id)

    await opened.session("s2")
    await opened.ledger.adopt("s2", "test", "", opened.upstream_session("s2").state, [])
    await opened.ledger.reserve("s2", "other", 3, ["ally-1"])
    await opened.ledger.doubt("s2", "other", [Step("t", "ally-1")])
    one = reconciler(opened)
    monkeypatch.setattr(one, "_list_products", slow)
    run = asyncio.ensure_future(one.run())
    try:
        await hung.wait()

        async def settled() -> bool:
            return await opened.used("s2") == set()

        await until(settled)
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await one.close()


async def test_two_reconcilers_settle_each_operation_once(bare: World) -> None:
    await bare.session()
    for _ in range(2):
        await bare.gateway()
    bare.fault("timeout")
    await asyncio.gather(*(bare.attach(f"ally-{n}", at=bare.gateways[n % 2]) for n in range(1, 4)))
    await bare.settled()
    events = await bare.ledger.events(BUCKET, "0-0", 100)
    settled = [fields["r"] for _, fields in events if fields["e"] == "settled"]
    assert sorted(settled) == ["ally-1", "ally-2", "ally-3"]
    assert await bare.used() == set()


class Paused:
    """A reconciler that stands still after it has read the list, as if it were stopped there."""

    def __init__(self, world: World, *, lease_seconds: float) -> None:
        self.read = asyncio.Event()
        self.go_on = asyncio.Event()
        self.reconciler = reconciler(world, lease_seconds=lease_seconds)
        self._lists = world.gateways[0]._list
        self.reconciler._list_products = self._list

    async def _list(self, session_id: str) -> tuple[Product, ...]:
        listed = await self._lists(session_id)
        self.read.set()
        await self.go_on.wait()
        return listed


async def test_one_that_was_paused_past_its_lease_changes_nothing(opened: World) -> None:
    """It read a list without the product; then the upstream applied it, and another reconciler committed it."""
    await in_doubt(opened)
    paused = Paused(opened, lease_seconds=0.01)
    visit = asyncio.ensure_future(paused.reconciler.visit(BUCKET))
    await paused.read.wait()
    opened.platform.platform.store.attach("s1", ["ally-1"], 0.0)
    await asyncio.sleep(0.02)
    await reconciler(opened).visit(BUCKET)
    paused.go_on.set()
    await visit
    assert await opened.used() == {"ally-1"}
    assert [slot.attached for slot in (await opened.snapshot()).slots] == [True]  # type: ignore[union-attr]


async def test_a_list_from_before_an_attach_does_not_settle_it(opened: World) -> None:
    """It read a list without the product; then a client attached it, and was told that it is there."""
    await in_doubt(opened)
    paused = Paused(opened, lease_seconds=5.0)
    visit = asyncio.ensure_future(paused.reconciler.visit(BUCKET))
    await paused.read.wait()
    assert (await opened.attach("ally-1")).status == 200
    await until(lambda: len(opened.gateways[0]._settlements.tasks) == 0)
    paused.go_on.set()
    await visit
    assert await opened.used() == {"ally-1"}
    await due(opened)
    await reconciler(opened).visit(BUCKET)
    assert await opened.used() == {"ally-1"}
    assert await opened.pending() == []


async def test_a_postponed_operation_that_another_has_claimed_is_left_alone(opened: World) -> None:
    await in_doubt(opened)
    pending, (mine,) = await opened.ledger.claim(BUCKET, 5.0, 10)
    await due(opened)
    _, (theirs,) = await opened.ledger.claim(BUCKET, 60.0, 10)
    await opened.ledger.postpone(mine, 0.0)
    assert await pause(opened) > 50
    await opened.ledger.postpone(theirs, 7.0)
    assert round(await pause(opened)) == 7
    assert (pending, mine.operation) == (1, "op")


async def test_what_is_gone_from_the_ledger_is_forgotten(opened: World) -> None:
    await in_doubt(opened)
    await opened.redis.delete(f"ag:{{{BUCKET}}}:s:s1")
    await reconciler(opened).visit(BUCKET)
    assert await opened.pending() == []


async def test_no_more_is_claimed_than_can_be_begun(opened: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubt, "MAX_AT_ONCE", 4)
    monkeypatch.setattr(doubt, "ROUND_SECONDS", 0.1)
    for n in range(1, 13):
        await opened.ledger.reserve("s1", f"op{n}", None, [f"ally-{n}"])
        await opened.ledger.doubt("s1", f"op{n}", [Step("t", f"ally-{n}")])
    await due(opened)
    running = most = 0
    lists = opened.gateways[0]._list

    async def counting(session_id: str) -> tuple[Product, ...]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await lists(session_id)

    one = reconciler(opened)
    one._list_products = counting
    run = asyncio.ensure_future(one.run())
    try:
        await until(lambda: _settled(opened))
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await one.close()
    assert 0 < most <= 4


async def test_redis_that_goes_away_does_not_end_it(opened: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubt, "AWAY_SECONDS", 0.05)
    await in_doubt(opened)
    one = reconciler(opened)
    claim = opened.ledger.claim
    failed = asyncio.Event()

    async def away(*arguments: Any) -> Any:
        failed.set()
        raise doubt.LedgerUnavailable("away")

    monkeypatch.setattr(opened.ledger, "claim", away)
    run = asyncio.ensure_future(one.run())
    try:
        await failed.wait()
        monkeypatch.setattr(opened.ledger, "claim", claim)
        await until(lambda: _settled(opened))
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await one.close()


async def test_a_server_that_is_away_keeps_only_its_own_buckets_waiting(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One master of a Cluster is gone: what the others have is settled in the same round, and its own soon after."""
    monkeypatch.setattr(doubt, "AWAY_SECONDS", 0.05)
    monkeypatch.setattr(doubt, "ROUND_SECONDS", 0.5)
    elsewhere = next(f"s{n}" for n in range(2, 100) if bucket_of(f"s{n}") > BUCKET)
    await opened.session(elsewhere)
    gateway = opened.gateways[0]
    await gateway._opening.open(elsewhere, await gateway._directory.account("shop-individual"), "test")
    await opened.ledger.reserve(elsewhere, "there", 3, ["ally-2"])
    await opened.ledger.doubt(elsewhere, "there", [Step("t", "ally-2")])
    await in_doubt(opened)
    claim, away = opened.ledger.claim, True

    async def one_is_away(bucket: int, *arguments: Any) -> Any:
        if away and bucket == BUCKET:
            raise doubt.LedgerUnavailable("away")
        return await claim(bucket, *arguments)

    monkeypatch.setattr(opened.ledger, "claim", one_is_away)
    one = reconciler(opened)
    one.expect("s1", 0.0)
    run = asyncio.ensure_future(one.run())
    try:
        await until(lambda: _no_records(opened, elsewhere))
        assert await opened.used() == {"ally-1"}
        monkeypatch.setattr(doubt, "ROUND_SECONDS", 60.0)
        monkeypatch.setattr(doubt, "BUCKETS_A_TICK", 1)
        away = False
        await until(lambda: _no_records(opened, "s1"))
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await one.close()


async def test_a_bucket_without_operations_is_passed_over_until_one_may_be_due(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubt, "ROUND_SECONDS", 0.0)
    await opened.ledger.reserve("s1", "op", 3, ["ally-1"])
    claim, rounds, asked = opened.ledger.claim, 0, Counter[int]()

    async def counted(bucket: int, *arguments: Any) -> Any:
        asked[bucket] += 1
        return await claim(bucket, *arguments)

    def a_round_is_over(in_doubt: int) -> None:
        nonlocal rounds
        rounds += 1

    monkeypatch.setattr(opened.ledger, "claim", counted)
    monkeypatch.setattr(opened.gateways[0].telemetry, "in_doubt", a_round_is_over)
    one = reconciler(opened)
    one._rest_seconds = 3600.0
    run = asyncio.ensure_future(one.run())
    try:
        await until(lambda: rounds >= 3)
        assert asked.pop(BUCKET) >= 3, "there is one, and it is looked at in each round"
        assert len(asked) == BUCKETS - 1
        assert set(asked.values()) == {1}
        empty = bucket_of("another")
        one.expect("another", 0.0)
        await until(lambda: asked[empty] == 2)
        one._rests_until = [0.0] * BUCKETS
        await until(lambda: min(asked.values()) == 2)
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await one.close()


async def test_no_longer_than_what_is_made_now_is_held_or_may_be_applied(world: World) -> None:
    config = LedgerConfig(hold_seconds=7.0)
    for late_seconds, rest_seconds in ((5.0, 5.0), (30.0, 7.0)):
        ledger = Ledger(world.ledger._connection, config, late_seconds)
        gateway = world.gateways[0]
        one = Reconciler(ledger, gateway._directory, gateway._list, gateway.telemetry)
        assert one._rest_seconds == rest_seconds


async def _no_records(world: World, session_id: str) -> bool:
    snapshot = await world.snapshot(session_id)
    return snapshot is not None and not snapshot.records
