"""A Cluster while clients attach: slots move from master to master, a master dies, and no slot is lost."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator

import pytest

from gateway.errors import LedgerUnavailable
from gateway.ledger.replies import MEANINGS
from gateway.ledger.steps import BUCKETS, Ledger
from tests.topologies.all_steps import take_all_steps
from tests.topologies.load import Load, everywhere, opened, session_in
from tests.topologies.redis_processes import ClusterNodes, Node, slot_of, until
from tests.topologies.test_standalone import allow, commands_run, denied

LONG = bool(os.environ.get("ATTACHGATE_LONG"))
MOVES = 30 if LONG else 3
KILLS = 4 if LONG else 1


@pytest.fixture
async def nodes(cluster: ClusterNodes) -> AsyncIterator[ClusterNodes]:
    try:
        yield cluster
    finally:
        await cluster.let_go()


async def as_user(nodes: ClusterNodes) -> str:
    """The address with a user that may do no more than deploy/gateway.toml says."""
    for node in nodes.nodes:
        await allow(node)
        await node.ask("ACL", "LOG", "RESET")
        await node.ask("CONFIG", "RESETSTAT")
    return nodes.url.replace("://", "://attachgate:PASSWORD@")


async def test_all_steps_on_each_master_by_a_user_with_the_documented_rule(nodes: ClusterNodes) -> None:
    url = await as_user(nodes)
    async with opened(url, durability="replicated", timeout_seconds=2.0, late_apply_seconds=0.0) as ledger:
        for master in await nodes.masters():
            await take_all_steps(ledger, session_in(await nodes.slots_of(master)))
    assert [await denied(node) for node in nodes.nodes] == [[]] * 6


async def test_slots_that_move_during_load(nodes: ClusterNodes) -> None:
    """Key by key, so that what is asked meanwhile is found here, there (ASK), or in both places (TRYAGAIN)."""
    source, target = (await nodes.masters())[:2]
    has = await nodes.slots_of(source)
    moving = random.sample([slot for slot in map(slot_of_bucket, range(BUCKETS)) if has(slot)], MOVES)
    async with opened(await as_user(nodes)) as ledger:
        load = Load(ledger, lambda: session_in(lambda slot: slot in moving))
        load.start()
        await load.served(40)
        for slot in moving:
            await nodes.begin_move(slot, source, target)
            await met(source)
            await nodes.move_keys(slot, source, target)
            await met(source)
            await nodes.end_move(slot, source, target)
        await load.served(40)
        await load.stop()
        assert await load.judge() == 0
        assert load.problems() <= {MEANINGS["TRYAGAIN"].detail}, "and those only while a slot is in both places"
    assert await source.errors("MOVED")
    assert await source.errors("ASK")
    assert "asking" in await commands_run(target)
    assert [await denied(node) for node in nodes.nodes] == [[]] * 6


async def met(source: Node) -> None:
    """Until a client has asked for something that is on its way."""

    async def sent_away() -> int:
        return await source.errors("ASK") + await source.errors("TRYAGAIN")

    before = await sent_away()

    async def once_more() -> bool:
        return await sent_away() > before

    await until(once_more)


def slot_of_bucket(bucket: int) -> int:
    return slot_of(f"ag:{{{bucket}}}:p")


async def test_a_master_that_dies_during_load(nodes: ClusterNodes) -> None:
    """Its replica takes over; nobody else notices."""
    async with opened(nodes.url, durability="replicated") as ledger:
        load = Load(ledger, everywhere)
        load.start()
        for _ in range(KILLS):
            await load.served(40)
            killed = random.choice(await nodes.masters())
            has = await nodes.slots_of(killed)
            killed.kill()
            for _ in range(20):
                assert await served(ledger, session_in(lambda slot, has=has: not has(slot)))  # type: ignore[misc]
            assert not await served(ledger, session_in(has))
            await until(lambda has=has: served(ledger, session_in(has)))  # type: ignore[misc]
            killed.spawn()
            await until(nodes.healthy)
            await load.served(40)
        await load.stop()
        assert await load.judge() == 0


async def served(ledger: Ledger, session: str) -> bool:
    try:
        await ledger.snapshot(session)
    except LedgerUnavailable:
        return False
    return True
