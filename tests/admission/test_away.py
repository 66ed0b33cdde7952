"""Redis is away for a moment, or for long, or its answers are lost: nothing is guessed and nothing forgotten."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.config import Ledger
from gateway.reconciler import takeover
from gateway.serve import Gateway
from tests.admission.world import HOLD_SECONDS, Line, World, until

CREATOR = "creator-li"
PURE = "shop-purecreator"


@pytest.fixture
async def gateway(bare: World, line: Line) -> Gateway:
    gateway = await bare.gateway(ledger=Ledger(line.url, timeout_seconds=0.3, hold_seconds=HOLD_SECONDS))
    await bare.session()
    await bare.session("pure", PURE)
    return gateway


@pytest.fixture
def world(bare: World, gateway: Gateway) -> World:
    return bare


async def slow_then_down(world: World, line: Line, work: Any) -> Any:
    """The upstream has the request, and Redis goes away before its answer."""
    task = asyncio.ensure_future(work)
    await until(lambda: len(world.gateways[0]._opening.on_their_way) == 1)
    await line.down()
    return task


@pytest.mark.parametrize("seconds", [0.1, 0.6])
async def test_a_commit_waits_for_redis(world: World, line: Line, seconds: float) -> None:
    world.fault("slow", delay_ms=50)
    task = await slow_then_down(world, line, world.attach("ally-1"))
    assert (await task).status == 200
    await asyncio.sleep(seconds)
    await line.up()
    await world.settled()
    assert await world.used() == {"ally-1"}


async def test_a_release_waits_for_redis(world: World, line: Line) -> None:
    world.fault("refuse", rate=1.0)
    world.platform.platform.latency_ms = 50
    task = await slow_then_down(world, line, world.attach("ally-1"))
    assert (await task).status == 422
    world.platform.platform.latency_ms = 0
    await line.up()
    await world.settled()
    assert await world.used() == set()


async def test_a_commit_that_waits_too_long_is_found_by_the_list(world: World, line: Line) -> None:
    world.fault("slow", delay_ms=50)
    task = await slow_then_down(world, line, world.attach("ally-1"))
    assert (await task).status == 200
    await until(lambda: len(world.gateways[0]._settlements.tasks) == 0)
    await line.up()
    await until(lambda: len(world.gateways[0]._takeovers) == 0)
    await world.settled()
    assert await world.used() == {"ally-1"}


async def test_what_a_cap_counts_is_refused_and_what_needs_no_count_goes_on(world: World, line: Line) -> None:
    assert (await world.attach("ally-1")).status == 200
    await line.down()
    refused = await world.attach("ally-2")
    assert (refused.status, refused.reason, refused.headers["Retry-After"]) == (503, "ledger_unavailable", "1")
    assert (await world.attach("own-individual-1")).status == 200
    assert (await world.attach("ally-2", session="pure", account=PURE)).status == 200
    assert world.journal() == ["ally-1", "own-individual-1", "ally-2"]
    assert (await world.start()).reason == "ledger_unavailable", "a replace may be in doubt: who knows?"
    assert (await world.start("pure", account=PURE)).status == 200
    assert (await world.detach("ally-1")).reason == "ledger_unavailable", "live, it would have to count"
    assert (await world.detach("own-individual-1")).status == 204
    await line.up()
    await until(lambda: len(world.gateways[0]._takeovers) == 0)
    await world.settled()
    assert await world.used() == {"ally-1"}


async def test_what_went_on_without_a_count_is_counted_afterwards(world: World, line: Line) -> None:
    await world.attach("ally-1", session="pure", account=PURE)
    await line.down()
    await world.attach("ally-2", session="pure", account=PURE)
    world.fault("drop_then_apply_late", delay_ms=120)
    assert (await world.attach("ally-3", session="pure", account=PURE)).status == 502
    world.no_faults()
    await line.up()
    await until(lambda: len(world.gateways[0]._takeovers) == 0)
    assert await world.used("pure") == {"ally-1", "ally-2", "ally-3"}


async def test_a_session_that_the_upstream_has_let_go_of_is_not_asked_for_for_ever(world: World, line: Line) -> None:
    await line.down()
    assert (await world.attach("ally-1", session="pure", account=PURE)).status == 200
    del world.platform.platform.store._rooms["pure"]
    await line.up()
    await until(lambda: len(world.gateways[0]._takeovers) == 0)
    assert await world.snapshot("pure") is None


@pytest.mark.parametrize("applied", [True, False])
async def test_a_detach_that_the_ledger_missed_gives_its_slot_back(world: World, line: Line, applied: bool) -> None:
    for n in (1, 2, 3):
        await world.attach(f"ally-{n}", session="pure", account=PURE)
    await line.down()
    if not applied:
        world.fault("error", "detach")
    await world.detach("ally-1", session="pure", account=PURE)
    world.no_faults()
    await line.up()
    await until(lambda: len(world.gateways[0]._takeovers) == 0)
    await world.settled("pure")
    assert await world.used("pure") == world.listed("pure") == {"ally-2", "ally-3"} | (set() if applied else {"ally-1"})


async def test_a_replace_that_the_ledger_missed(world: World, line: Line) -> None:
    await world.attach("own-individual-1")
    for n in (1, 2):
        await world.attach(f"ally-{n}")
        await world.attach(f"ally-{n}", session="pure", account=PURE)
    await line.down()
    assert (await world.replace("ally-1", "ally-9")).status == 503
    assert (await world.replace("ally-2", "own-individual-2")).status == 503
    assert (await world.replace("own-individual-1", "own-individual-2")).status == 200
    assert (await world.replace("ally-2", "ally-3", session="pure", account=PURE)).status == 200
    await line.up()
    await until(lambda: len(world.gateways[0]._takeovers) == 0)
    await world.settled()
    await world.settled("pure")
    assert await world.used() == {"ally-1", "ally-2"}
    assert await world.used("pure") == {"ally-1", "ally-3"}


@pytest.mark.parametrize("step", ["attach", "replace"])
async def test_a_reserve_whose_answer_is_lost_is_released(world: World, line: Line, step: str) -> None:
    await world.attach("ally-1")
    line.lose = True
    said = await (world.attach("ally-2") if step == "attach" else world.replace("ally-1", "ally-2"))
    assert said.reason == "ledger_unavailable"
    line.lose = False
    await world.settled()
    assert await world.used() == {"ally-1"} == world.listed()


async def test_the_second_of_two_lost_answers_says_what_the_first_did(world: World, line: Line) -> None:
    """The step is repeated once by itself, and changes nothing the second time."""
    await world.attach("ally-1")
    line.lose = True
    task = asyncio.ensure_future(world.attach("ally-2"))
    line.asked.clear()
    await line.asked.wait()
    await asyncio.sleep(0.005)
    line.lose = False
    said = await task
    await world.settled()
    assert await world.used() == world.listed()
    assert said.status in (200, 503)


async def test_a_failed_count_for_the_headers_is_nobodys_loss(
    world: World, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    await line.down()
    with caplog.at_level(logging.ERROR):
        answers = await asyncio.gather(*(world.attach("own-individual-1") for _ in range(5)))
        world.fault("apply_then_drop")
        answers += await asyncio.gather(*(world.attach("own-individual-1") for _ in range(5)))
        import gc

        gc.collect()
        await asyncio.sleep(0)
    assert {answer.status for answer in answers} == {200, 502}
    assert not caplog.records, "no exception that was never retrieved"
    await line.up()


async def test_a_hundred_takeovers_that_must_wait_are_one_line(bare: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "LOG_SECONDS", 3600.0)
    gateway = await bare.gateway()
    for number in range(100):
        gateway._takeovers.add(await bare.session(f"s{number}"))
    bare.fault("error", "list")
    asked = gateway._opening._list_products
    questions = 0

    async def counted(session_id: str) -> Any:
        nonlocal questions
        questions += 1
        return await asked(session_id)

    gateway._opening._list_products = counted
    with capture_logs() as logs:
        await until(lambda: questions > 200)
    assert [line["waiting"] for line in logs if line["event"] == "takeover_postponed"] == [100]
    bare.no_faults()
    await until(lambda: len(gateway._takeovers) == 0)


@pytest.mark.parametrize(("mode", "reason"), [("error", "upstream_unreachable"), ("timeout", "upstream_timeout")])
async def test_a_list_that_can_not_be_had_stops_only_what_a_cap_counts(world: World, mode: str, reason: str) -> None:
    world.fault(mode, "list")
    assert (await world.attach("ally-1")).reason == reason
    assert (await world.attach("ally-1", session="pure", account=PURE)).status == 200
    assert (await world.detach("ally-1", session="pure", account=PURE)).status == 204
    world.no_faults()
    await until(lambda: len(world.gateways[0]._takeovers) == 0)
    assert await world.used("pure") == set()


async def test_a_gateway_that_was_stopped_before_it_forwarded_does_not_forward(world: World) -> None:
    """Its record may have been settled while it stood still, and its place given to another."""
    gateway = world.gateways[0]
    reserve = gateway.ledger.reserve

    async def stopped(*arguments: Any) -> Any:
        answer = await reserve(*arguments)
        gateway._gate.pool._clock = lambda: asyncio.get_running_loop().time() + 3600
        return answer

    gateway.ledger.reserve = stopped  # type: ignore[method-assign]
    said = await world.attach("ally-1")
    assert (said.status, said.reason) == (503, "overloaded")
    assert world.journal() == []
    await world.settled()
    assert await world.used() == set()


@pytest.mark.parametrize("step", ["replace", "start"])
async def test_nor_a_replace_or_a_start(world: World, step: str) -> None:
    await world.attach("ally-1")
    gateway = world.gateways[0]
    asked = getattr(gateway.ledger, step)

    async def stopped(*arguments: Any, **more: Any) -> Any:
        answer = await asked(*arguments, **more)
        gateway._gate.pool._clock = lambda: asyncio.get_running_loop().time() + 3600
        return answer

    setattr(gateway.ledger, step, stopped)
    said = await (world.replace("ally-1", "ally-2") if step == "replace" else world.start())
    assert said.reason == "overloaded"
    await world.settled()
    assert world.journal(step) == []
    assert await world.used() == {"ally-1"}


async def test_a_replace_that_finds_no_ledger_twice_is_not_forwarded(world: World) -> None:
    for n in (1, 2, 3):
        await world.attach(f"ally-{n}")
    gateway = world.gateways[0]
    opened = gateway._opening.open

    async def lost_again(*arguments: Any) -> None:
        await opened(*arguments)
        await world.redis.flushall()

    await world.redis.flushall()
    gateway._opening.open = lost_again  # type: ignore[method-assign]
    assert (await world.replace("ally-1", "ally-9")).reason == "ledger_unavailable"
    assert world.journal("replace") == []


async def test_an_unforeseen_failure_of_a_settlement_is_not_the_clients(world: World) -> None:
    gateway = world.gateways[0]

    async def broken(*arguments: Any) -> Any:
        raise RuntimeError("unforeseen")

    gateway.ledger.commit = broken  # type: ignore[method-assign]
    said = await world.attach("ally-1", "ally-2")
    assert said.status == 200
    gateway.ledger.release = broken  # type: ignore[method-assign]
    world.fault("refuse")
    assert (await world.attach("ally-3")).status == 422


async def test_an_account_that_nothing_restricts_does_not_wait_for_its_products(world: World) -> None:
    await world.session("free", CREATOR)
    await world.attach("ally-1", session="free", account=CREATOR)
    records = world.gateways[0]._directory.product_records
    records.forget("ally-1")
    misses = records.misses
    world.fault("timeout", "directory")
    assert (await world.attach("ally-1", session="free", account=CREATOR)).status == 200
    assert records.misses == misses


async def test_create_whose_answer_is_odd_is_still_the_upstreams(world: World) -> None:
    gateway = world.gateways[0]
    request = gateway._pool.request

    for body in (b"not json", b"{}", b'{"session_id":"a b","account_id":"shop-individual","state":"preparing"}', b""):

        async def odd(*arguments: Any, body: bytes = body, **more: Any) -> Any:
            answer = await request(*arguments, **more)
            answer.body = body
            return answer

        gateway._pool.request = odd  # type: ignore[method-assign]
        said = await world.ask("POST", "/live/sessions", {"account_id": "shop-individual"})
        assert (said.status, said.raw) == (201, body)
    gateway._pool.request = request  # type: ignore[method-assign]
    assert not [name async for name in world.redis.scan_iter("*s:a b*")]
