"""Sentinel fails over while clients attach: everything goes on, no session is over its cap, no slot is lost."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Literal

import pytest

from gateway.errors import LedgerUnavailable
from gateway.ledger.steps import Ledger
from gateway.policy.model import SessionState
from tests.topologies.load import CAP, Load, everywhere, opened
from tests.topologies.redis_processes import SentinelNodes, until

LONG = bool(os.environ.get("ATTACHGATE_LONG"))
FAILOVERS = 5 if LONG else 1


@pytest.fixture
async def nodes(sentinels: SentinelNodes) -> AsyncIterator[SentinelNodes]:
    try:
        yield sentinels
    finally:
        await sentinels.let_go()


async def asked_for(nodes: SentinelNodes) -> None:
    before = await nodes.master()
    await nodes.sentinels[0].ask("SENTINEL", "FAILOVER", nodes.service)
    await nodes.until_failed_over(before)
    await nodes.take_back(before)


async def master_killed(nodes: SentinelNodes) -> None:
    before = await nodes.master()
    before.kill()
    await nodes.until_failed_over(before)
    before.spawn()
    await nodes.take_back(before)


async def master_stalled(nodes: SentinelNodes) -> None:
    """And it wakes later, still taking itself for the master."""
    before = await nodes.master()
    before.stall()
    try:
        await nodes.until_failed_over(before)
    finally:
        before.go_on()
    await nodes.take_back(before)


@pytest.mark.parametrize(
    "fail_over", [asked_for, master_killed, *([master_stalled] if LONG else [])], ids=lambda one: one.__name__
)
async def test_a_failover_during_load(
    nodes: SentinelNodes, fail_over: Callable[[SentinelNodes], Awaitable[None]]
) -> None:
    """Where every replica must have a slot, the one that is promoted has it."""
    async with opened(nodes.url, durability="replicated", replicas=2) as ledger:
        load = Load(ledger, everywhere)
        load.start()
        for _ in range(FAILOVERS):
            await load.served(40)
            await fail_over(nodes)
            await load.served(40)
        await load.stop()
        assert await load.judge() == 0


async def test_a_slot_that_the_promoted_replica_never_got(nodes: SentinelNodes) -> None:
    """Its link was cut before the reserve. With "primary" the slot counts, and is gone after the failover; so it is
    where the word of one replica of two was enough. With every replica's word the reserve is refused, and nothing is
    forwarded."""
    settings: tuple[tuple[Literal["primary", "replicated"], int], ...]
    settings = ("primary", 1), ("replicated", 1), ("replicated", 2)
    async with AsyncExitStack() as stack:
        one, two, all_of_them = [
            await stack.enter_async_context(opened(nodes.url, durability=durability, replicas=replicas))
            for durability, replicas in settings
        ]
        for ledger, session in ((one, "s1"), (two, "s2"), (all_of_them, "s3")):
            await ledger.adopt(session, "o1", "", SessionState.preparing, ["before"])
        master, (promoted, other) = await nodes.master(), await nodes.replicas()
        await master.ask("WAIT", 2, 1000)
        await promoted.ask("REPLICAOF", "127.0.0.1", 1)
        assert (await one.reserve("s1", "o2", CAP, ["late"])).said == "held"
        assert (await two.reserve("s2", "o2", CAP, ["late"])).said == "held"
        with pytest.raises(LedgerUnavailable, match=r"ledger\.replicas") as refused:
            await all_of_them.reserve("s3", "o2", CAP, ["late"])
        assert (refused.value.status, refused.value.reason) == (503, "ledger_unavailable")

        await nodes.sentinels[0].ask("SENTINEL", "FAILOVER", nodes.service)
        assert await nodes.until_failed_over(master) is promoted
        await other.ask("REPLICAOF", "127.0.0.1", promoted.port)
        await nodes.take_back(master)
        for ledger, session in ((one, "s1"), (two, "s2"), (all_of_them, "s3")):
            assert await slots_of(ledger, session) == {"before"}


async def slots_of(ledger: Ledger, session: str) -> set[str]:
    """As soon as Redis is there again."""
    found: set[str] = set()

    async def asked() -> bool:
        try:
            snapshot = await ledger.snapshot(session)
        except LedgerUnavailable:
            return False
        found.update(slot.product_id for slot in snapshot.slots if snapshot is not None)  # type: ignore[union-attr]
        return True

    await until(asked)
    return found
