"""Everything that a gateway ever asks of Redis, once: whoever denies it something is found."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.ledger.journal import Journal
from gateway.ledger.steps import Ledger, Step, bucket_of
from gateway.policy.model import SessionState

PREPARING = SessionState.preparing


async def take_all_steps(ledger: Ledger, session: str = "s1") -> None:
    """Through a whole session: every script, the events, readiness, and what is asked at start."""
    bucket = bucket_of(session)
    await ledger.warnings()
    await ledger.ping()
    assert (await ledger.reserve(session, "o1", 3, ["p1"])).said == "missing"
    assert (await ledger.adopt(session, "o1", "", PREPARING, [])).said == "adopted"
    assert (await ledger.reserve(session, "o1", 3, ["p1", "p2"])).said == "held"
    await ledger.commit(session, "o1", "attached", [Step("t", "p1"), Step("t", "p2", applied=False)])
    assert (await ledger.reserve(session, "o2", 3, ["p2", "p3"])).said == "held"
    assert (await ledger.reserve(session, "o3", 3, ["p4"])).said == "full"
    assert await ledger.used(session) == b"3"
    await ledger.release(session, "o2", 2)

    assert (await ledger.replace(session, "o4", 3, PREPARING, "p1", "p5", foreign=True)).said == "held"
    await ledger.commit(session, "o4", "replaced", [Step("g", "p1"), Step("t", "p5")], PREPARING)
    assert (await ledger.detach(session, "o5", "p5")).said == "asked"
    await ledger.commit(session, "o5", "detached", [Step("g", "p5")], PREPARING)

    assert (await ledger.reserve(session, "o6", 3, ["p6"])).said == "held"
    await ledger.doubt(session, "o6", [Step("t", "p6")])
    _, (claimed,) = await ledger.claim(bucket, 0.0, 10)
    await ledger.postpone(claimed, 0.0)
    _, (claimed,) = await ledger.claim(bucket, 5.0, 10)
    held = await ledger.snapshot(session)
    assert held is not None
    outcome = [(0, slot.generation, True) for slot in held.slots if slot.product_id == "p6"]
    assert (await ledger.settle(claimed, PREPARING, outcome)).said == "settled"

    assert (await ledger.replace(session, "o7", 3, PREPARING, "p6", "p7", foreign=True)).said == "held"
    assert (await ledger.start(session, "o8", 3)).said == "asked", "what is lent is paid for"
    await ledger.commit(session, "o8", "started", [Step("s")])
    await ledger.release(session, "o7", 2)
    assert (await ledger.end(session, "o9")).said == "ended"
    snapshot = await ledger.snapshot(session)
    assert snapshot is not None
    assert [slot.product_id for slot in snapshot.slots] == ["p6"], snapshot
    said = await _events(ledger, session)
    assert {"attached", "refused", "replaced", "detached", "in_doubt", "settled", "started", "ended"} <= set(said), said


async def _events(ledger: Ledger, session: str) -> Sequence[str]:
    """As a client that follows the session gets them."""
    journal = Journal(ledger)
    try:
        await journal.check(session, "0-0")
        async with asyncio.timeout(5.0):
            kinds = []
            async for event in journal.follow(session, "0-0", 5.0):
                assert event is not None
                kinds.append(event.kind)
                if event.kind == "ended":
                    break
            return kinds
    finally:
        await journal.close()
