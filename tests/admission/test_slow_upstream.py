"""The upstream hangs on one route: that route's clients are told so at once, and all others are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.config import Ledger, Upstream
from gateway.upstream.listing import LISTS_AT_ONCE
from tests.admission.world import LATE_SECONDS, Said, World, until

PLACES, ROUTES, QUEUE = 18, 9, 4
MOST_OF_ONE = PLACES - (ROUTES - 1) * (PLACES // (2 * ROUTES))


@pytest.fixture
async def world(bare: World) -> World:
    upstream = Upstream(
        bare.platform.url,
        max_connections=PLACES,
        max_queue=QUEUE,
        connect_timeout_seconds=10.0,
        response_timeout_seconds=10.0,
        late_apply_seconds=LATE_SECONDS,
    )
    await bare.gateway(upstream, ledger=Ledger(bare.redis_url, timeout_seconds=1.0, hold_seconds=15.0))
    for number in range(3):
        await bare.session(f"s{number}")
    return bare


@asynccontextmanager
async def hanging(world: World, product: str, count: int) -> AsyncIterator[set[asyncio.Task[Said]]]:
    """So many attaches, which the upstream does not answer."""
    world.fault("timeout", "attach")
    attaches = {asyncio.ensure_future(world.attach(product, session="s1")) for _ in range(count)}
    places = world.gateways[0]._pool._places
    await until(lambda: places.busy == MOST_OF_ONE and places._waiting == QUEUE)
    yield attaches
    await asyncio.wait(attaches)


async def test_a_hanging_attach_route_leaves_the_others_at_full_speed(world: World) -> None:
    assert (await world.attach("ally-1", "ally-2", session="s2")).status == 200
    async with hanging(world, "own-individual-1", MOST_OF_ONE + QUEUE + 10) as attaches:
        await until(lambda: sum(task.done() for task in attaches) == 10)
        refused = {task for task in attaches if task.done()}
        for said in [task.result() for task in refused]:
            assert (said.status, said.reason, said.headers["Retry-After"]) == (503, "overloaded", "1")

        async def one(number: int) -> None:
            assert (await world.replace("ally-1", "ally-3", session="s2")).status == 200
            assert (await world.replace("ally-3", "ally-1", session="s2")).status == 200
            assert (await world.detach(f"own-{number}", session="s2")).status == 404
            assert (await world.ask("GET", "/live/sessions/s2/products")).status == 200
            assert (await world.ask("GET", "/live/sessions/s2")).status == 200
            assert (await world.ask("GET", "/accounts/shop-individual/showcase/addable")).status == 200

        for number in range(10):
            await one(number)
        created = await world.ask("POST", "/live/sessions", {"account_id": "shop-individual", "session_id": "new"})
        assert created.status == 201
        assert (await world.start("s2")).status == 200
        assert sum(task.done() for task in attaches) == 10, "while all that was still in the way"
        world.no_faults()
    await until(lambda: world.gateways[0]._pool._places.busy == 0)
    assert (await world.attach("own-individual-1", session="s1")).status == 200


async def test_refused_for_want_of_a_place_gives_its_slot_back(world: World) -> None:
    async with hanging(world, "own-individual-1", MOST_OF_ONE + QUEUE):
        said = await world.attach("ally-1", session="s2")
        assert (said.status, said.reason) == (503, "overloaded")
        await world.settled("s2")
        assert await world.used("s2") == set()
        world.no_faults()


async def test_hanging_lists_leave_the_directory_its_answers(world: World) -> None:
    """New sessions wait for their lists, and accounts and products that nobody asked about yet are still known."""
    most = LISTS_AT_ONCE + QUEUE
    for number in range(most + 1):
        await world.session(f"many-{number}")
    world.fault("timeout", "list")
    openings = [asyncio.ensure_future(world.attach("ally-1", session=f"many-{number}")) for number in range(most)]
    await until(lambda: len(world.gateways[0]._opening._running) == most)
    said = await world.attach("ally-1", session=f"many-{most}")
    assert (said.status, said.reason) == (503, "overloaded")
    await world.session("other", "shop-enterprise")
    said = await world.attach("own-enterprise-1", session="other", account="shop-enterprise")
    assert said.status == 200
    assert not any(task.done() for task in openings)
    world.no_faults()
    await asyncio.wait(openings)
