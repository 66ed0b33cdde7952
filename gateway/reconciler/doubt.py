"""Settles operations whose outcome nobody knows, its own gateway's and those of gateways that died.

Every operation in flight is in its bucket's index of pending ones with the time when it is due. A round visits all
buckets in `ROUND_SECONDS`; a gateway that leaves an operation in doubt says when to look (`expect`), so that its own
are settled as soon as they are due.

An operation that was still held when its time was over belongs to a gateway that is gone: it becomes in doubt, and
is due once the upstream can no longer apply it. One in doubt is settled by the upstream's list, asked after the claim,
and a look at the session, asked after the list. Where either fails nothing is settled, and the lease's end brings it
up again. A reconciler that was paused past its lease finds another fence there, and changes nothing.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence

import structlog

from gateway.directory import Directory
from gateway.errors import GatewayError, LedgerUnavailable
from gateway.ledger.steps import BUCKETS, Answer, Ledger, Pending, Record, Snapshot, Step, bucket_of
from gateway.policy.model import Product
from gateway.telemetry import Telemetry

ROUND_SECONDS = 5.0
BUCKETS_A_TICK = 16
CLAIMS_A_BUCKET = 64
LEASE_SECONDS = 5.0
MAX_EXPECTED = 100_000

log = structlog.get_logger(__name__)


class Reconciler:
    """`list_products` asks the upstream for a session's products, whole or an error."""

    def __init__(
        self,
        ledger: Ledger,
        directory: Directory,
        list_products: Callable[[str], Awaitable[tuple[Product, ...]]],
        telemetry: Telemetry,
        *,
        concurrency: int = 8,
    ) -> None:
        self._ledger = ledger
        self._directory = directory
        self._list_products = list_products
        self._telemetry = telemetry
        self._places = asyncio.Semaphore(concurrency)
        self._expected: list[tuple[float, int]] = []
        self._pending = 0

    def expect(self, session_id: str, in_seconds: float) -> None:
        """Look at this session's bucket at that time, besides the round."""
        if len(self._expected) < MAX_EXPECTED:
            at = asyncio.get_running_loop().time() + in_seconds
            heapq.heappush(self._expected, (at, bucket_of(session_id)))

    async def run(self) -> None:
        """Visit the buckets round and round, until cancelled."""
        loop = asyncio.get_running_loop()
        tick_seconds = ROUND_SECONDS * BUCKETS_A_TICK / BUCKETS
        position = 0
        while True:
            began = loop.time()
            buckets = set(range(position, position + BUCKETS_A_TICK))
            while self._expected and self._expected[0][0] <= began:
                buckets.add(heapq.heappop(self._expected)[1])
            try:
                counts = await asyncio.gather(*map(self.visit, buckets))
                self._count_round(position, sum(counts))
                position = (position + BUCKETS_A_TICK) % BUCKETS
            except LedgerUnavailable:
                await asyncio.sleep(LEASE_SECONDS / 5)
            await asyncio.sleep(max(0.0, tick_seconds - (loop.time() - began)))

    def _count_round(self, position: int, pending: int) -> None:
        self._pending = pending if position == 0 else self._pending + pending
        if position + BUCKETS_A_TICK >= BUCKETS:
            self._telemetry.in_doubt(self._pending)

    async def visit(self, bucket: int) -> int:
        """Settle what is due in a bucket; returns how many operations are pending there."""
        pending, claimed = await self._ledger.claim(bucket, LEASE_SECONDS, CLAIMS_A_BUCKET)
        if claimed:
            await asyncio.gather(*map(self._settle_one, claimed))
        return pending

    async def _settle_one(self, pending: Pending) -> None:
        async with self._places:
            try:
                said = await self.settle(pending)
            except GatewayError as error:
                said = "postponed"
                log.warning(
                    "settlement_postponed",
                    decision_id=pending.operation,
                    session_id=pending.session_id,
                    reason=error.reason,
                    error=error.detail,
                )
        self._telemetry.settled(said)
        if said == "stale":
            self.expect(pending.session_id, 0.3)
        elif said == "postponed":
            self.expect(pending.session_id, LEASE_SECONDS)

    async def settle(self, pending: Pending) -> str:
        """What was said in the end: `in_doubt`, `committed`, `released`, `nothing`, `stale` or `lost`."""
        snapshot = await self._ledger.snapshot(pending.session_id)
        records = snapshot.records.get(pending.operation, ()) if snapshot is not None else ()
        if any(not record.in_doubt for record in records):
            steps = _in_order(pending, {record.number: Step(record.kind, record.product_id) for record in records})
            answer = await self._ledger.doubt(pending.session_id, pending.operation, steps, own=False)
            self.expect(pending.session_id, self._ledger.late_apply_seconds)
            return answer.said
        if snapshot is None or not records:
            await self._ledger.settle(pending, None, ())
            return "nothing"

        answer, listed = await self._ask_upstream(pending, snapshot, records)
        if answer.said != "settled":
            return answer.said
        taken = [record for record in records if record.kind == "t"]
        if not taken:
            return "nothing"
        return "committed" if any(record.product_id in listed for record in taken) else "released"

    async def look_early(self, session_id: str) -> None:
        """Settle what the upstream's list shows to have been applied already, without waiting until nothing can be
        applied any more. Raises what the directory, the list or the ledger fail with."""
        snapshot = await self._ledger.snapshot(session_id)
        for operation, records in snapshot.records.items() if snapshot is not None else ():
            if snapshot is not None and all(record.in_doubt for record in records):
                count = max(record.number for record in records) + 1
                await self._ask_upstream(Pending(session_id, operation, count, ""), snapshot, records)

    async def _ask_upstream(
        self, pending: Pending, snapshot: Snapshot, records: Sequence[Record]
    ) -> tuple[Answer, set[str]]:
        """The list first, then the session: a product that was missing while the session was still preparing was
        missing before the start."""
        listed = {product.product_id for product in await self._list_products(pending.session_id)}
        session = await self._directory.fresh_session(pending.session_id)
        outcomes = []
        for record in records:
            slot = snapshot.slot(record.product_id)
            generation = slot.generation if slot is not None else None
            outcomes.append((record.number, generation, record.product_id in listed))
        return await self._ledger.settle(pending, session.state, outcomes), listed


def _in_order(pending: Pending, steps: dict[int, Step]) -> list[Step]:
    """An operation's steps by the number of their record; a number without a record is a step of nothing."""
    return [steps.get(number, Step("g")) for number in range(pending.records)]
