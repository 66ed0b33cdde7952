"""A stage for one session: the real scripts, the upstream's model, and time that the test moves.

Operations have names that the test gives them, so that a test reads as the interleaving that it plays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import redis.asyncio

from gateway.config import Ledger as LedgerConfig
from gateway.ledger.connection import Connection, connect
from gateway.ledger.lines import JOURNAL_ONLY
from gateway.ledger.steps import Answer, Ledger, Pending, Slot, Snapshot, Step, bucket_of
from gateway.policy.model import SessionState
from tests.ledger.model import Upstream

PREPARING, LIVE, ENDED = SessionState.preparing, SessionState.live, SessionState.ended
HOLD_SECONDS, LATE_SECONDS, RETENTION_SECONDS = 20.0, 30.0, 604_800.0
_numbers = count(1)


@dataclass
class Look:
    """What a reconciler has read before it settles."""

    pending: Pending
    snapshot: Snapshot
    listed: set[str]
    seen: SessionState


@dataclass
class Stage:
    """`raw`: for what only a test looks at or moves."""

    ledger: Ledger
    raw: redis.asyncio.Redis
    connection: Connection
    session: str
    upstream: Upstream = field(default_factory=Upstream)
    cap: int | None = 3

    @classmethod
    async def begin(cls, url: str, *attached: str, opened: bool = True, **config: Any) -> Stage:
        connection = connect(url, 2.0, lambda: 0.0)
        raw = redis.asyncio.Redis.from_url(url, decode_responses=True)
        settings = LedgerConfig(hold_seconds=HOLD_SECONDS, retention_seconds=RETENTION_SECONDS, **config)
        stage = cls(Ledger(connection, settings, LATE_SECONDS), raw, connection, f"room-{next(_numbers)}")
        stage.upstream.attach(attached)
        if opened:
            await stage.ledger.adopt(stage.session, "open", "", PREPARING, attached)
        return stage

    async def close(self) -> None:
        await self.raw.aclose()
        await self.connection.close()

    # A gateway's steps

    async def reserve(self, op: str, *products: str) -> str:
        return (await self.ledger.reserve(self.session, op, self.cap, products)).said

    async def attach(self, op: str, *products: str) -> None:
        """Asked, applied and committed, with nothing in between."""
        assert await self.reserve(op, *products) == "held"
        assert self.upstream.attach(products)
        await self.commit(op, *products)

    async def commit(self, op: str, *products: str, failed: Sequence[str] = ()) -> str:
        steps = [Step("t", product) for product in products] + [Step("t", product, False) for product in failed]
        return (await self.ledger.commit(self.session, op, "attached", steps)).said

    async def release(self, op: str, records: int = 1) -> None:
        await self.ledger.release(self.session, op, records)

    async def doubt(self, op: str, *steps: str) -> str:
        """Steps as "t:product", "g:product", "s:"."""
        return (await self.ledger.doubt(self.session, op, [_step(step) for step in steps])).said

    async def detach(self, op: str, product: str) -> str:
        return (await self.ledger.detach(self.session, op, product)).said

    async def detached(self, op: str, product: str, seen: SessionState | None, *, found: bool = True) -> Answer:
        """The upstream answered 2xx, or that it did not find the product."""
        return await self.ledger.commit(self.session, op, "detached", [Step("g", product, found)], seen)

    async def replace(
        self, op: str, old: str, new: str, seen: SessionState = PREPARING, *, foreign: bool = True
    ) -> str:
        return (await self.ledger.replace(self.session, op, self.cap, seen, old, new, foreign=foreign)).said

    async def replaced(self, op: str, old: str, new: str, seen: SessionState | None) -> Answer:
        return await self.ledger.commit(self.session, op, "replaced", [Step("g", old), Step("t", new)], seen)

    async def start(self, op: str) -> str:
        return (await self.ledger.start(self.session, op, self.cap)).said

    async def started(self, op: str) -> Answer:
        return await self.ledger.commit(self.session, op, "started", [Step("s")])

    async def go_live(self) -> None:
        assert await self.start("start") == "asked"
        self.upstream.start()
        await self.started("start")

    # A reconciler's steps

    async def time_passes(self, op: str) -> None:
        """What this operation waits for is over: its hold, the time to apply it late, or a lease."""
        key = self.ledger.pending_key(self.bucket)
        members = [one for one in await self.raw.zrange(key, 0, -1) if one.split(" ")[:2] == [self.session, op]]
        assert len(members) == 1, f"{op} is pending {len(members)} times"
        await self.raw.zadd(key, {members[0]: 0})

    async def claim(self, op: str) -> Pending:
        await self.time_passes(op)
        # Time passes here within a millisecond: another length, so that it is another lease.
        _, claimed = await self.ledger.claim(self.bucket, 5.0 + next(_numbers) / 1000, 1000)
        return next(one for one in claimed if (one.session_id, one.operation) == (self.session, op))

    async def look(self, pending: Pending) -> Look:
        snapshot = await self.snapshot()
        return Look(pending, snapshot, set(self.upstream.attached), SessionState(self.upstream.state))

    async def settle(self, look: Look) -> Answer:
        outcomes = []
        for record in look.snapshot.records.get(look.pending.operation, ()):
            slot = look.snapshot.slot(record.product_id)
            outcomes.append((record.number, slot.generation if slot else None, record.product_id in look.listed))
        return await self.ledger.settle(look.pending, look.seen, outcomes)

    async def reconcile(self, op: str) -> str:
        """All that a reconciler does to one operation, again and again until it is done."""
        for _ in range(4):
            pending = await self.claim(op)
            snapshot = await self.snapshot()
            records = snapshot.records.get(op, ())
            if any(not record.in_doubt for record in records):
                steps = {record.number: Step(record.kind, record.product_id) for record in records}
                await self.ledger.doubt(
                    self.session, op, [steps.get(n, Step("g")) for n in range(pending.records)], own=False
                )
                continue
            said = (await self.settle(await self.look(pending))).said
            if said != "stale":
                return said
        return "stale"

    async def look_early(self, op: str) -> str:
        """As a start does, before it is asked."""
        records = (await self.snapshot()).records[op]
        pending = Pending(self.session, op, max(record.number for record in records) + 1, "")
        return (await self.settle(await self.look(pending))).said

    # What is true

    @property
    def bucket(self) -> int:
        return bucket_of(self.session)

    @property
    def key(self) -> str:
        return f"ag:{{{self.bucket}}}:s:{self.session}"

    async def snapshot(self) -> Snapshot:
        snapshot = await self.ledger.snapshot(self.session)
        assert snapshot is not None
        return snapshot

    async def slot(self, product: str) -> Slot | None:
        return (await self.snapshot()).slot(product)

    async def slots(self) -> set[str]:
        return {slot.product_id for slot in (await self.snapshot()).slots}

    async def used(self) -> int:
        return (await self.snapshot()).used

    async def fields(self) -> dict[str, str]:
        found: dict[str, str] = await self.raw.hgetall(self.key)
        return found

    async def pending(self) -> list[str]:
        members = await self.raw.zrange(self.ledger.pending_key(self.bucket), 0, -1)
        return [member.split(" ")[1] for member in members if member.split(" ")[0] == self.session]

    async def events(self, kind: str | None = None) -> list[tuple[str, str, str]]:
        """Kind, operation, products, without those for the journal alone."""
        entries = await self.raw.xrange(self.ledger.stream_key(self.bucket))
        mine = [one for _, one in entries if one["s"] == self.session and one["e"] not in JOURNAL_ONLY]
        return [(one["e"], one["o"], one.get("p", "")) for one in mine if kind in (None, one["e"])]

    async def is_settled(self, *slots: str) -> None:
        """No record, nothing pending, and exactly these slots."""
        snapshot = await self.snapshot()
        assert not snapshot.records
        assert await self.pending() == []
        assert {slot.product_id for slot in snapshot.slots} == set(slots)
        assert snapshot.used == len(slots)


def _step(text: str) -> Step:
    kind, _, product = text.partition(":")
    return Step(kind, product)  # type: ignore[arg-type]
