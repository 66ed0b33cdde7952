"""What is remembered of full sessions, and for how long."""

from __future__ import annotations

import pytest

from gateway.ledger.full import MAX_FRESH_SECONDS, MAX_SESSIONS, FullSessions
from gateway.ledger.steps import decode_snapshot
from tests.ledger.stage import LIVE, PREPARING, Stage

FRESH_SECONDS = 5.0
LIVE_AND_FULL = {"s": "l", "u": "3", "v": "9", "pa": "1|1|a|0", "pb": "2|2|r|0", "pc": "3|3|x|0"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def full(clock: Clock) -> FullSessions:
    return FullSessions(clock, FRESH_SECONDS)


def learn(full: FullSessions, session_id: str = "room", **fields: str) -> None:
    items = [part.encode() for pair in (LIVE_AND_FULL | fields).items() for part in pair]
    snapshot = decode_snapshot(tuple(items))
    assert snapshot is not None
    full.learn(session_id, snapshot)


def test_a_product_without_a_slot_is_refused_with_what_the_ledger_had(full: FullSessions) -> None:
    learn(full)
    for products in (["d"], ["a", "d"]):
        snapshot = full.refuses("room", 3, products)
        assert snapshot is not None
        assert snapshot.used == 3
    assert full.refuses("room", 2, ["d"]) is not None


@pytest.mark.parametrize("products", [["a"], ["b"], ["c"], ["a", "b"]])
def test_a_product_that_has_a_slot_is_asked_for(full: FullSessions, products: list[str]) -> None:
    learn(full)
    assert full.refuses("room", 3, products) is None


@pytest.mark.parametrize(
    "fields",
    [{"s": "p"}, {"s": "e"}, {"pc": "3|3|h|1"}, {"pc": "3|3|d|1"}],
    ids=["in preparation", "ended", "only held", "held and detached before"],
)
def test_what_may_change_is_asked_for(full: FullSessions, fields: dict[str, str]) -> None:
    learn(full, **fields)
    assert full.refuses("room", 3, ["d"]) is None


def test_a_cap_that_rises_is_asked_for(full: FullSessions) -> None:
    learn(full)
    assert full.refuses("room", 4, ["d"]) is None


def test_nothing_is_remembered_for_long(full: FullSessions, clock: Clock) -> None:
    learn(full)
    clock.now = FRESH_SECONDS
    assert full.refuses("room", 3, ["d"]) is not None
    clock.now += 0.001
    assert full.refuses("room", 3, ["d"]) is None
    assert len(full) == 0


def test_nor_longer_than_a_minute_and_not_at_all_where_nothing_is_believed(clock: Clock) -> None:
    full = FullSessions(clock, 86_400.0)
    learn(full)
    clock.now = MAX_FRESH_SECONDS + 0.001
    assert full.refuses("room", 3, ["d"]) is None
    full = FullSessions(clock, 0.0)
    learn(full)
    assert full.refuses("room", 3, ["d"]) is None


def test_no_more_than_a_limit_is_remembered(full: FullSessions) -> None:
    for number in range(MAX_SESSIONS + 5):
        learn(full, f"room-{number}")
    assert len(full) == MAX_SESSIONS
    assert full.refuses("room-0", 3, ["d"]) is None


async def test_what_two_gateways_do_to_a_full_live_session_leaves_it_full(full: FullSessions, redis_url: str) -> None:
    """Another gateway detaches, replaces with what has a slot, fails, restarts the session and adopts."""
    stage = await Stage.begin(redis_url, "a", "b", "c")
    await stage.go_live()
    assert await stage.reserve("fourth", "d") == "full"
    full.learn("room", await stage.snapshot())
    await stage.detach("away", "a")
    stage.upstream.detach("a")
    await stage.detached("away", "a", PREPARING)
    await stage.reserve("again", "a")
    await stage.doubt("again", "t:a")
    await stage.reconcile("again")
    await stage.replace("swap", "b", "c", LIVE)
    stage.upstream.replace("b", "c")
    await stage.replaced("swap", "b", "c", LIVE)
    version = (await stage.snapshot()).version
    await stage.ledger.adopt(stage.session, "sweep", version, LIVE, sorted(stage.upstream.attached))
    assert full.refuses("room", 3, ["d"]) is not None
    assert await stage.reserve("fifth", "d") == "full"
    await stage.close()
