"""Opening and comparing sessions: only what nothing has changed meanwhile is believed.

Takeovers go on until they can."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.errors import LedgerUnavailable, SessionUnknown, UpstreamUnreachable
from gateway.ledger.steps import Step
from gateway.policy.model import Account, Product
from gateway.reconciler.opening import Opening
from gateway.telemetry import Seldom
from tests.admission.world import World, until


@pytest.fixture
async def account(world: World) -> Account:
    return await world.gateways[0]._directory.account("shop-individual")


@pytest.fixture
def opening(world: World) -> Opening:
    return world.gateways[0]._opening


def before_the_list_comes(opening: Opening, do: Any) -> None:
    lists = opening._list_products

    async def meanwhile(session_id: str) -> tuple[Product, ...]:
        listed = await lists(session_id)
        await do()
        return listed

    opening._list_products = meanwhile


async def test_a_session_made_past_the_gateway_starts_with_what_it_has(
    world: World, opening: Opening, account: Account
) -> None:
    world.platform.platform.store.attach("s1", ["ally-1", "own-individual-1", "ally-2"], 0.0)
    await opening.open("s1", account, "test")
    assert await world.used() == {"ally-1", "ally-2"}
    assert [(await world.attach(f"ally-{n}")).status for n in (3, 4)] == [200, 403]


async def test_one_that_another_gateway_has_opened_is_open(world: World, opening: Opening, account: Account) -> None:
    async def another() -> None:
        await world.ledger.adopt("s1", "other", "", world.upstream_session().state, ["ally-9"])

    before_the_list_comes(opening, another)
    await opening.open("s1", account, "test")
    assert await world.used() == {"ally-9"}


async def test_but_what_is_on_its_way_here_is_added(world: World, opening: Opening, account: Account) -> None:
    times = 0

    async def another() -> None:
        nonlocal times
        times += 1
        if times == 1:
            await world.ledger.adopt("s1", "other", "", world.upstream_session().state, ["ally-9"])

    before_the_list_comes(opening, another)
    opening.on_their_way.begin("s1", "mine", [Step("t", "ally-1")])
    await opening.open("s1", account, "test")
    assert await world.used() == {"ally-1", "ally-9"}
    opening.on_their_way.end("s1", "mine")
    assert len(opening.on_their_way) == 0


async def test_a_comparison_believes_no_list_from_before_a_change(world: World, opening: Opening) -> None:
    await world.attach("ally-1")
    times = 0

    async def detached() -> None:
        nonlocal times
        times += 1
        if times == 1:
            assert (await world.detach("ally-1")).status == 204

    before_the_list_comes(opening, detached)
    await opening.compare("s1", "test")
    await world.settled()
    assert times == 2
    assert await world.used() == set()


async def test_a_session_that_never_stands_still_is_said_so(world: World, opening: Opening) -> None:
    await world.attach("own-individual-1")
    await world.attach("ally-1")
    number = 0

    async def changed() -> None:
        nonlocal number
        number += 1
        await world.ledger.reserve("s1", f"op{number}", None, ["ally-2"])

    before_the_list_comes(opening, changed)
    with pytest.raises(LedgerUnavailable, match="changes too quickly"):
        await opening.compare("s1", "test")


async def test_all_who_wait_for_a_failing_opening_are_told_and_the_next_may_try(
    world: World, opening: Opening, account: Account
) -> None:
    world.fault("error", "list")
    results = await asyncio.gather(*(opening.open("s1", account, f"op{n}") for n in range(5)), return_exceptions=True)
    assert {type(result) for result in results} == {UpstreamUnreachable}
    world.no_faults()
    await opening.open("s1", account, "again")
    assert await world.used() == set()


async def test_products_past_the_gateway_are_adopted_and_counted(world: World, opening: Opening) -> None:
    await world.attach("ally-1")
    await world.settled()
    world.platform.platform.store.attach("s1", ["ally-2", "ally-3"], 0.0)
    await opening.compare("s1", "test")
    assert await world.used() == {"ally-1", "ally-2", "ally-3"}
    assert b"attachgate_adopted_total 2.0" in world.gateways[0].telemetry.exposition()[0]


# Takeovers


async def test_a_takeover_is_tried_until_it_can_be_had(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.attach("ally-1")
    gateway = world.gateways[0]
    compare = gateway._opening.compare
    errors = iter([UpstreamUnreachable("…"), RuntimeError("unforeseen"), SessionUnknown("…")])
    done = []

    async def failing(session_id: str, operation: str) -> None:
        if (error := next(errors, None)) is not None:
            raise error
        await compare(session_id, operation)
        done.append(session_id)

    monkeypatch.setattr(gateway._opening, "compare", failing)
    monkeypatch.setattr(gateway._takeovers, "_say", Seldom(0.0))
    world.platform.platform.store.attach("s1", ["ally-2"], 0.0)
    with capture_logs() as logs:
        gateway._takeovers.add("s1")
        gateway._takeovers._waiting["s1"].given_up_at = inf
        await until(lambda: len(gateway._takeovers) == 0)
    assert [line["event"] for line in logs if line["event"].startswith("takeover")] == [
        "takeover_postponed",
        "takeover_failed",
        "takeover_postponed",
    ]
    assert done == ["s1", "s1"], "once more when nothing can be applied late any more"
    assert await world.used() == {"ally-1", "ally-2"}


async def test_a_step_missed_during_a_takeover_is_taken_over_too(world: World) -> None:
    gateway = world.gateways[0]
    takeovers = gateway._takeovers
    compare = gateway._opening.compare
    times = 0

    async def counted(session_id: str, operation: str) -> None:
        nonlocal times
        times += 1
        await compare(session_id, operation)
        if times == 1:
            takeovers.add("s1")

    gateway._opening.compare = counted  # type: ignore[method-assign]
    takeovers.add("s1")
    await until(lambda: len(takeovers) == 0)
    assert times == 3
