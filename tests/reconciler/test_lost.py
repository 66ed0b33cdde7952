"""Redis loses a session while operations are on their way: its next count is never one without them."""

from __future__ import annotations

import asyncio

import pytest

from tests.admission.world import World, until


async def on_its_way(world: World, *products: str, count: int = 1) -> asyncio.Task[object]:
    """An attach that the upstream has and takes its time to answer."""
    before = len(world.gateways[0]._opening.on_their_way)
    task = asyncio.ensure_future(world.attach(*products))
    await until(lambda: len(world.gateways[0]._opening.on_their_way) == before + count)
    return task


async def test_what_is_being_forwarded_counts_in_the_new_ledger(world: World) -> None:
    world.fault("slow", delay_ms=120)
    first = await on_its_way(world, "ally-1")
    world.platform.platform.store._rooms["s1"].products.clear()  # the list does not show it yet
    await world.redis.flushall()
    world.no_faults()
    statuses = [(await world.attach(f"ally-{n}")).status for n in (2, 3, 4)]
    assert statuses == [200, 200, 403]
    assert (await first).status == 200  # type: ignore[attr-defined]
    await world.settled()
    assert await world.used() == {"ally-1", "ally-2", "ally-3"}


async def test_a_commit_that_finds_no_session_opens_it(world: World) -> None:
    world.fault("slow", delay_ms=100)
    first = await on_its_way(world, "ally-1")
    await world.redis.flushall()
    await first
    await world.settled()
    assert await world.used() == {"ally-1"}
    assert [slot.attached for slot in (await world.snapshot()).slots] == [True]  # type: ignore[union-attr]


async def test_a_doubt_that_finds_no_session_opens_it_and_keeps_the_slot(world: World) -> None:
    world.fault("drop_then_apply_late", delay_ms=120)
    await world.attach("ally-1")
    await world.redis.flushall()
    world.no_faults()
    statuses = [(await world.attach(f"ally-{n}")).status for n in (2, 3, 4)]
    assert statuses == [200, 200, 403], "it may still be applied, so its place is taken"
    await world.settled()
    assert await world.used() == {"ally-1", "ally-2", "ally-3"} == world.listed()


async def test_what_was_in_doubt_and_was_not_applied_gives_its_place_back(world: World) -> None:
    world.fault("timeout")
    await world.attach("ally-1")
    world.no_faults()
    await world.redis.flushall()
    assert (await world.attach("ally-2")).status == 200
    await world.settled()
    assert await world.used() == {"ally-2"}
    assert [(await world.attach(f"ally-{n}")).status for n in (3, 4, 5)] == [200, 200, 403]


@pytest.mark.parametrize("applied", [True, False])
async def test_a_replace_in_doubt(world: World, applied: bool) -> None:
    for n in (1, 2, 3):
        assert (await world.attach(f"ally-{n}")).status == 200
    world.fault("drop_then_apply_late" if applied else "timeout", "replace", delay_ms=120)
    assert (await world.replace("ally-1", "ally-4")).status in (502, 504)
    await world.redis.flushall()
    world.no_faults()
    assert (await world.attach("ally-5")).status == 403
    await world.settled()
    one = "ally-4" if applied else "ally-1"
    assert await world.used() == {"ally-2", "ally-3", one} == world.listed()


@pytest.mark.parametrize("again", [False, True])
async def test_a_detach_whose_product_may_have_come_back(world: World, again: bool) -> None:
    await world.attach("ally-1")
    world.fault("slow", "detach", delay_ms=120)
    detaching = asyncio.ensure_future(world.detach("ally-1"))
    await until(lambda: not world.listed())
    if again:
        world.platform.platform.store.attach("s1", ["ally-1"], 0.0)
    await world.redis.flushall()
    await world.attach("ally-2")
    assert (await detaching).status == 204
    await world.settled()
    assert await world.used() == world.listed() == ({"ally-1", "ally-2"} if again else {"ally-2"})


async def test_sixty_clients_and_a_flush_in_the_middle(world: World) -> None:
    """All through one gateway: what it has on its way it knows, so there are never four."""
    world.fault("slow", rate=0.5, delay_ms=30)
    clients = [asyncio.ensure_future(world.attach(f"ally-{n % 20 + 1}")) for n in range(60)]
    await asyncio.sleep(0.02)
    await world.redis.flushall()
    await asyncio.gather(*clients)
    await world.settled()
    assert len(set(world.journal())) == 3
    assert await world.used() == world.listed()


async def test_the_first_attaches_of_a_session_ask_for_one_list(world: World) -> None:
    asked = 0
    list_products = world.gateways[0]._opening._list_products

    async def counting(session_id: str):  # type: ignore[no-untyped-def]
        nonlocal asked
        asked += 1
        return await list_products(session_id)

    world.gateways[0]._opening._list_products = counting
    await asyncio.gather(*(world.attach(f"ally-{n}") for n in range(1, 20)))
    assert asked == 1
    await world.settled()


async def test_one_who_gives_up_does_not_end_the_opening_for_the_others(world: World) -> None:
    gateway = world.gateways[0]
    account = await gateway._directory.account("shop-individual")
    first = asyncio.ensure_future(gateway._opening.open("s1", account, "one"))
    second = asyncio.ensure_future(gateway._opening.open("s1", account, "two"))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled()
    assert await world.used() == set()
