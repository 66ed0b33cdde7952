"""The sweep: what goes past the gateway is found, and set right only by steps that nothing can have overtaken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.errors import UpstreamUnreachable
from gateway.ledger import sessions
from gateway.ledger.sessions import Sessions
from gateway.ledger.steps import Record, Slot, Snapshot, bucket_of
from gateway.policy.model import Product, SessionState
from gateway.reconciler import drift
from gateway.reconciler.drift import Drift, difference
from tests.admission.world import LATE_SECONDS, World, until

PREPARING, LIVE, ENDED = SessionState.preparing, SessionState.live, SessionState.ended


def of(world: World, number: int = 0, rate: float = 1000.0) -> Drift:
    gateway = world.gateways[number]
    found = Sessions(gateway._connection, "ag")
    parts = (gateway.ledger, found, gateway._directory, gateway._list, gateway._opening, gateway.telemetry)
    return Drift(*parts, rate)


async def round_of(sweeping: Drift) -> None:
    for key in sweeping._sessions.rounds():
        assert await sweeping.sweep(key)


def metric(world: World, name: str) -> float:
    text = world.gateways[0].telemetry.exposition()[0].decode()
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"attachgate_{name} "))


def past_the_gateway(world: World, *attached: str, detached: str | None = None, session: str = "s1") -> None:
    store = world.platform.platform.store
    if attached:
        store.attach(session, list(attached), 0.0)
    if detached is not None:
        store.detach(session, detached, 0.0)


async def settled(world: World) -> None:
    """As soon as what is in doubt is due, and not with the reconciler's next round."""
    world.gateways[0]._reconciler.expect("s1", LATE_SECONDS + 0.02)
    await world.settled()


@pytest.fixture
async def room(world: World) -> World:
    """Two foreign products and one of its own, through the gateway."""
    await world.attach("ally-1", "ally-2")
    await world.attach("own-individual-1")
    await world.settled()
    return world


async def test_what_was_attached_past_the_gateway_counts_and_is_said(room: World) -> None:
    past_the_gateway(room, "ally-9", "own-individual-2")
    with capture_logs() as logs:
        await round_of(of(room))
    assert await room.used() == {"ally-1", "ally-2", "ally-9"}
    assert (await room.attach("ally-3")).status == 403
    assert metric(room, 'drift_total{kind="attached"}') == metric(room, "adopted_total") == 1
    assert [(line["event"], line["product_ids"]) for line in logs if line["log_level"] == "warning"] == [
        ("attached_past_the_gateway", ("ally-9",))
    ]
    events = await room.ledger.events(bucket_of("s1"), "0-0", 100)
    assert [(e["e"], e["p"]) for _, e in events if e.get("a") == "adopted"] == [("attached", "ally-9")]


async def test_a_slot_that_was_lost_is_restored(room: World) -> None:
    """An older backup of Redis knew one product less."""
    await room.redis.hdel(key(room), "pally-2")
    await room.redis.hincrby(key(room), "u", -1)
    await round_of(of(room))
    assert await room.used() == {"ally-1", "ally-2"}


async def test_what_agrees_is_not_written(room: World) -> None:
    before, sweeping = await room.redis.hgetall(key(room)), of(room)
    for _ in range(3):
        await round_of(sweeping)
    assert await room.redis.hgetall(key(room)) == before
    assert metric(room, "swept_total") == 3
    assert metric(room, 'drift_total{kind="attached"}') == metric(room, 'drift_total{kind="detached"}') == 0


@pytest.mark.parametrize("live", [False, True])
async def test_a_slot_whose_product_left_past_the_gateway(room: World, live: bool) -> None:
    """Before the start it comes back, once the list has been asked again; live it stays used (N5)."""
    if live:
        assert (await room.start()).status == 200
        await settled(room)
    past_the_gateway(room, detached="ally-2")
    sweeping = of(room)
    await round_of(sweeping)
    assert len(await room.pending()) == 1
    assert await room.used() == {"ally-1", "ally-2"}, "not by one list"
    await round_of(sweeping)
    assert len(await room.pending()) == 1, "it is asked for once"
    await settled(room)
    assert await room.used() == ({"ally-1", "ally-2"} if live else {"ally-1"})
    assert [slot.product_id for slot in (await room.snapshot()).slots if slot.attached] == ["ally-1"]  # type: ignore[union-attr]
    assert metric(room, 'drift_total{kind="detached"}') == 1
    await round_of(sweeping)
    assert await room.pending() == []


async def test_a_product_that_is_back_before_the_second_list_keeps_its_slot(room: World) -> None:
    past_the_gateway(room, detached="ally-2")
    await round_of(of(room))
    past_the_gateway(room, "ally-2")
    await settled(room)
    assert await room.used() == {"ally-1", "ally-2"}
    assert all(slot.attached for slot in (await room.snapshot()).slots)  # type: ignore[union-attr]


async def test_a_start_past_the_gateway_between_the_two_lists_keeps_the_slot(room: World) -> None:
    past_the_gateway(room, detached="ally-2")
    await round_of(of(room))
    room.platform.platform.store.start("s1", 0.0)
    await settled(room)
    assert await room.used() == {"ally-1", "ally-2"}


async def test_states_are_learnt(room: World) -> None:
    sweeping = of(room)
    room.platform.platform.store.start("s1", 0.0)
    await round_of(sweeping)
    assert (await room.snapshot()).state is LIVE  # type: ignore[union-attr]
    room.platform.platform.store.end("s1", 0.0)
    await round_of(sweeping)
    assert (await room.snapshot()).state is ENDED  # type: ignore[union-attr]
    swept = metric(room, "swept_total")
    await round_of(sweeping)
    assert metric(room, "swept_total") == swept, "what has ended is passed over"


async def test_a_detach_whose_gateway_died_and_whose_record_redis_lost_keeps_no_slot(room: World) -> None:
    assert (await room.ledger.detach("s1", "dead", "ally-2")).said == "asked"
    await room.redis.flushall()
    await room.gateways[0]._opening.compare("s1", "test")
    past_the_gateway(room, detached="ally-2")
    assert await room.used() == {"ally-1", "ally-2"}
    await round_of(of(room))
    await settled(room)
    assert await room.used() == {"ally-1"}


# What comes in between


def between(sweeping: Drift, do: Callable[[], Any]) -> None:
    """Once, when the list is read."""
    list_products, waiting = sweeping._list_products, [do]

    async def then(session_id: str) -> tuple[Product, ...]:
        if waiting:
            await waiting.pop()()
        return await list_products(session_id)

    sweeping._list_products = then


async def test_an_attach_through_the_gateway_meanwhile_is_no_alarm(room: World) -> None:
    sweeping = of(room)

    async def attached() -> None:
        assert (await room.attach("ally-3")).status == 200
        await settled(room)

    between(sweeping, attached)
    with capture_logs() as logs:
        await round_of(sweeping)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == []
    assert await room.used() == {"ally-1", "ally-2", "ally-3"}
    assert metric(room, 'drift_total{kind="attached"}') == 0


async def test_nor_a_detach_that_the_upstream_has_applied_and_the_ledger_does_not_know_yet(room: World) -> None:
    sweeping = of(room)

    async def applied() -> None:
        assert (await room.ledger.detach("s1", "slow", "ally-2")).said == "asked"
        past_the_gateway(room, detached="ally-2")

    between(sweeping, applied)
    with capture_logs() as logs:
        await round_of(sweeping)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == []
    assert metric(room, 'drift_total{kind="detached"}') == 0


async def test_a_detach_through_the_gateway_meanwhile_is_no_alarm(room: World) -> None:
    sweeping = of(room)

    async def detached() -> None:
        assert (await room.detach("ally-2")).status == 204
        await settled(room)

    between(sweeping, detached)
    await round_of(sweeping)
    assert await room.used() == {"ally-1"}
    assert (metric(room, 'drift_total{kind="detached"}'), await room.pending()) == (0, [])


@pytest.mark.parametrize("fault", ["list", "directory"])
async def test_an_error_changes_nothing_and_the_sweep_goes_on_later(room: World, fault: Any) -> None:
    past_the_gateway(room, "ally-9", detached="ally-2")
    before = await room.redis.hgetall(key(room))
    sweeping = of(room)
    room.fault("error", fault)
    (name,) = sweeping._sessions.rounds()
    assert not await sweeping.sweep(name)
    assert await room.redis.hgetall(key(room)) == before
    room.no_faults()
    await round_of(sweeping)
    await settled(room)
    assert await room.used() == {"ally-1", "ally-9"}


async def test_a_list_in_part_is_no_list(room: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await room.redis.hgetall(key(room))
    past_the_gateway(room, "ally-9")
    sweeping = of(room)

    async def part(session_id: str) -> tuple[Product, ...]:
        raise UpstreamUnreachable("one page of several")

    monkeypatch.setattr(sweeping, "_list_products", part)
    assert not await sweeping.sweep(sweeping._sessions.rounds()[0])
    assert await room.redis.hgetall(key(room)) == before


# Whose turn it is


async def test_one_gateway_sweeps_at_a_time_and_the_next_goes_on_where_it_stopped(
    room: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.gateway()
    for number in range(300):
        await room.ledger.adopt(f"many-{number}", "test", "", PREPARING, [])
    monkeypatch.setattr(sessions, "PIECE_KEYS", 40)
    first, second = of(room)._sessions, of(room, 1)._sessions
    (name,) = first.rounds()
    found = set(await first.piece(name) or ())
    assert 30 <= len(found) < 301
    assert await second.piece(name) is None
    assert not await second.keep(name)
    assert await first.keep(name)
    await room.redis.hset(name, "t", 1)  # its gateway died, and its lease is over
    cursor = await room.redis.hget(name, "c")
    assert await second.piece(name) is not None
    assert await room.redis.hget(name, "c") != cursor
    assert not await first.keep(name), "the one that comes back finds the sweep taken"
    await room.redis.hset(name, "c", cursor)
    for _ in range(20):
        found |= set(await second.piece(name) or ())
        if await room.redis.hget(name, "c") == b"0":
            break
    assert found == {"s1", *(f"many-{number}" for number in range(300))}


async def test_who_was_stopped_for_longer_than_its_lease_leaves_the_rest_to_the_next(room: World) -> None:
    await room.session("s2")
    assert (await room.attach("ally-1", session="s2")).status == 200
    sweeping, looked = of(room), 0
    (name,) = sweeping._sessions.rounds()

    async def taken() -> None:
        nonlocal looked
        looked += 1
        await room.redis.hset(name, mapping={"o": "another", "t": "99999999999999"})

    between(sweeping, taken)
    assert not await sweeping.sweep(name)
    assert (looked, metric(room, "swept_total")) == (1, 1)


async def test_the_rate_is_bounded(room: World) -> None:
    for number in range(4):
        await room.session(f"more-{number}")
        assert (await room.attach("ally-1", session=f"more-{number}")).status == 200
    loop = asyncio.get_running_loop()
    began = loop.time()
    await round_of(of(room, rate=20.0))
    assert loop.time() - began >= 5 / 20.0


async def test_keys_of_others_are_let_be(room: World) -> None:
    await room.redis.set("ag:{1}:s:s1", "not in its bucket")
    await room.redis.hset("agx:{1}:s:s1", "s", "p")
    await room.redis.set(f"ag:{{{bucket_of('x')}}}:s:", "")
    found = of(room)._sessions
    assert await found.piece(found.rounds()[0]) == ["s1"]


async def test_the_loop_outlives_what_fails(room: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(drift, "AWAY_SECONDS", 0.01)
    sweeping = of(room)
    look, errors = sweeping.look, iter([RuntimeError("unforeseen"), UpstreamUnreachable("…")])

    async def failing(session_id: str) -> None:
        if (error := next(errors, None)) is not None:
            raise error
        await look(session_id)

    monkeypatch.setattr(sweeping, "look", failing)
    past_the_gateway(room, "ally-9")
    with capture_logs() as logs:
        running = asyncio.ensure_future(sweeping.run())
        await until(lambda: metric(room, "swept_total") > 2)
        running.cancel()
    assert [line["event"] for line in logs][:2] == ["sweep_failed", "sweep_paused"]
    assert await room.used() == {"ally-1", "ally-2", "ally-9"}


# The comparison by itself


def slot(product_id: str, *, attached: bool = True, held: int = 0) -> Slot:
    return Slot(product_id, 1, attached, held, False, 1)


@pytest.mark.parametrize(
    ("slots", "records", "listed", "expected"),
    [
        ([slot("a")], {}, ["a"], ((), ())),
        ([slot("a")], {}, [], ((), ("a",))),
        ([], {}, ["a"], (("a",), ())),
        ([slot("a", attached=False)], {}, ["a"], (("a",), ())),
        ([slot("a", attached=False)], {}, [], ((), ())),
        ([slot("a", attached=False, held=1)], {"o": (Record(0, "t", "a", False),)}, ["a"], ((), ())),
        ([slot("a")], {"o": (Record(0, "g", "a", True),)}, [], ((), ())),
        ([], {"o": (Record(0, "g", "a", True),)}, ["a"], ((), ())),
        ([slot("a")], {"o": (Record(0, "g", "b", True),)}, [], ((), ("a",))),
    ],
)
def test_what_differs(slots: Any, records: Any, listed: Any, expected: Any) -> None:
    snapshot = Snapshot(PREPARING, len(slots), "1", tuple(slots), records)
    found = difference(snapshot, listed, listed, PREPARING)
    assert (found.unknown, found.gone) == expected


def test_what_is_its_own_now_is_neither_unknown_nor_gone() -> None:
    snapshot = Snapshot(PREPARING, 1, "1", (slot("a"),), {})
    found = difference(snapshot, ["a", "own"], [], PREPARING)
    assert (found.unknown, found.gone) == ((), ())


@pytest.mark.parametrize(
    ("ledger", "upstream", "records", "started"),
    [
        (PREPARING, LIVE, {}, True),
        (PREPARING, LIVE, {"o": (Record(0, "s", "", False),)}, False),
        (LIVE, LIVE, {}, False),
        (LIVE, PREPARING, {}, False),
    ],
)
def test_a_start_that_nobody_has_on_its_way(ledger: Any, upstream: Any, records: Any, started: bool) -> None:
    assert difference(Snapshot(ledger, 0, "1", (), records), [], [], upstream).started is started


def key(world: World) -> str:
    return world.ledger._keys("s1")[0]
