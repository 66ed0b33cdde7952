"""The schedule in virtual time: an open loop, whose latencies hide nothing."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import pytest

from gateway.load.client import Answer, Done
from gateway.load.drive import TICK_SECONDS, Drive, Pace, reason_of
from gateway.load.measure import Measures, Second
from gateway.load.options import Operation
from gateway.load.scenario import Merchant, Scenario, Shape

MERCHANTS = [Merchant("a0", "shop0", ("own0",))]
OFFER = [(f"ally{n}", "allyshop") for n in range(30)]
OK = Answer(200, b'{"attached":[]}')


class World:
    """A clock that only sleeping moves, and a target whose answers take as long as `delay` says of their
    sending time."""

    def __init__(self, delay: Callable[[float], float], answers: Callable[[int], Answer] = lambda n: OK) -> None:
        self.now = 100.0
        self.sent: list[float] = []
        self._delay = delay
        self._answers = answers
        self._coming: list[tuple[float, int, Answer, Done]] = []
        self._numbers = itertools.count()
        self.pauses: dict[int, float] = {}
        self._sleeps = 0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self._sleeps += 1
        self.now += max(seconds, 1e-6) + self.pauses.get(self._sleeps, 0.0)

    def send(self, method: str, path: str, account_id: str, body: bytes, done: Done) -> None:
        number = next(self._numbers)
        self.sent.append(self.now - 100)
        heapq.heappush(self._coming, (self.now + self._delay(self.now - 100), number, self._answers(number), done))

    def expire(self) -> None:
        while self._coming and self._coming[0][0] <= self.now:
            _, _, answer, done = heapq.heappop(self._coming)
            done(answer)


async def drive(
    world: World,
    rate: float = 100,
    seconds: float = 3,
    retries: int = 0,
    mix: dict[Operation, float] | None = None,
    on_second: Callable[[Second], None] = lambda second: None,
    stop: Callable[[], bool] = lambda: False,
) -> Measures:
    shape = Shape(1, 10, 0.0, mix or {Operation.attach_own: 1.0})
    scenario = Scenario(shape, MERCHANTS, OFFER, "run", 1)
    measures = Measures()
    driven = Drive(
        scenario,
        [world],
        Pace(rate, seconds, retries, 5.0),
        measures,
        seed=1,
        clock=world.clock,
        sleep=world.sleep,
        on_second=on_second,
    )
    assert await driven.open(scenario.opening(), 4, 3) == []
    world.sent.clear()
    world.now = 100.0
    await driven.run(stop)
    return measures


async def test_requests_start_on_time_whether_or_not_others_were_answered() -> None:
    world = World(lambda at: 1.5)
    measures = await drive(world)
    assert len(world.sent) == measures.asked == 300
    assert all(abs(at - n / 100) <= 2 * TICK_SECONDS for n, at in enumerate(world.sent))
    assert measures.unfinished == 0


async def test_a_target_that_stalls_cannot_hide_what_it_held_up() -> None:
    """It stalls for a second: a closed loop would have seen one slow request; here about a hundred were due."""
    world = World(lambda at: 2.0 - at if 1.0 <= at < 2.0 else 0.001)
    measures = await drive(world)
    p50, p90 = measures.all.percentiles_ms((50.0, 90.0))
    assert p50 < 5
    assert p90 == pytest.approx(700, rel=0.05)
    assert measures.all.max_ms == pytest.approx(1000, rel=0.01)


async def test_the_harness_own_lateness_is_part_of_the_latency_and_is_said() -> None:
    world = World(lambda at: 0.001)
    world.pauses = {500: 1.0}
    measures = await drive(world)
    assert measures.asked == 300
    assert measures.all.max_ms == pytest.approx(1000, rel=0.02)
    assert measures.lateness.max_ms == pytest.approx(1000, rel=0.02)


async def test_a_tick_adds_nothing_to_a_fast_answer() -> None:
    world = World(lambda at: 0.0)
    measures = await drive(world, rate=700)
    assert measures.all.max_ms <= 2 * TICK_SECONDS * 1000


async def test_a_race_takes_as_many_places_of_the_schedule_as_it_has_clients() -> None:
    world = World(lambda at: 0.001)
    measures = await drive(world, mix={Operation.race: 1.0})
    assert measures.asked == 300
    starts = [list(group) for _, group in itertools.groupby(world.sent)]
    assert {len(group) for group in starts} == {10}
    assert starts[1][0] - starts[0][0] == pytest.approx(0.1, abs=2 * TICK_SECONDS)


async def test_what_failed_is_tried_again_on_top_of_the_rate() -> None:
    answers = {1: Answer(0, reason="timeout"), 2: Answer(503, retry_after_seconds=2.0)}
    world = World(lambda at: 0.001, lambda n: answers.get(n, OK))
    measures = await drive(world, retries=2, seconds=1)
    assert (measures.asked, measures.retries, measures.requests) == (100, 2, 102)
    assert world.sent[-1] > 1.5, "Retry-After"
    assert measures.failed == 2
    assert [(row.status, row.reason, row.count) for row in measures.answers()] == [
        (200, "", 100),
        (0, "timeout", 1),
        (503, "", 1),
    ]


async def test_retries_end() -> None:
    world = World(lambda at: 0.001, lambda n: Answer(500) if n else OK)
    measures = await drive(world, retries=2, seconds=0.1)
    assert (measures.asked, measures.retries, measures.unfinished) == (10, 20, 0)
    assert measures.error_rate == 1.0


async def test_a_refusal_is_an_answer() -> None:
    refused = Answer(403, b'{"reason":"foreign_cap_reached","detail":"x"}')
    measures = await drive(World(lambda at: 0.001, lambda n: refused if n else OK), retries=2, seconds=1)
    (row,) = measures.answers()
    assert (row.operation, row.status, row.reason, row.count) == (Operation.attach_own, 403, "foreign_cap_reached", 100)
    assert (measures.retries, measures.error_rate) == (0, 0.0)


async def test_each_second_is_told() -> None:
    seconds: list[Second] = []
    measures = await drive(World(lambda at: 0.25), on_second=seconds.append)
    assert seconds == measures.seconds
    assert sum(second.asked for second in seconds) == 300
    assert [round(second.at_seconds) for second in seconds] == [1, 2, 3, 3]
    assert seconds[0].asked == pytest.approx(100, abs=2)
    assert seconds[0].in_flight == pytest.approx(25, abs=2)
    assert seconds[0].p50_ms == pytest.approx(250, rel=0.02)


async def test_an_answer_that_never_comes_is_said() -> None:
    measures = await drive(World(lambda at: 1000.0 if at > 0.005 else 0.0), seconds=0.1)
    assert measures.unfinished == 9


async def test_stopping_ends_the_schedule_and_waits_for_what_is_in_flight() -> None:
    world = World(lambda at: 0.3)
    measures = await drive(world, stop=lambda: len(world.sent) >= 50)
    assert (measures.asked, measures.all.count) == (50, 50)


async def test_a_fault_of_the_harness_itself_is_raised() -> None:
    broken = Answer(200, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await drive(World(lambda at: 0.001, lambda n: broken if n else OK), seconds=0.1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(200, b"anything"), ""),
        (Answer(404, b"not json"), ""),
        (Answer(404, b'{"error":"no session"}'), ""),
        (Answer(403, b'{"reason":"foreign_cap_reached"}'), "foreign_cap_reached"),
        (Answer(0, b"", "connection_lost"), "connection_lost"),
    ],
)
def test_reasons(answer: Answer, reason: str) -> None:
    assert reason_of(answer) == reason
