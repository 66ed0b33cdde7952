"""Settles operations whose outcome nobody knows, its own gateway's and those of gateways that died.

Every operation in flight is in its bucket's index of pending ones with the time when it is due. A round visits all
buckets in `ROUND_SECONDS`; a gateway that leaves an operation in doubt says when to look (`expect`), so that its own
are settled as soon as they are due. A bucket without any operation is passed over for as long as none that is made now
can be due, or an idle gateway would ask Redis 200 times a second for nothing. Only what was to be looked at at once, by
a gateway that died before it could, waits so much longer for another one.

An operation that was still held when its time was over belongs to a gateway that is gone: it becomes in doubt, and
is due once the upstream can no longer apply it. One in doubt is settled by the upstream's list, asked after the claim,
and a look at the session, asked after the list. Where either fails nothing is settled, and it is due again after a
pause that grows. A reconciler that was paused past its lease finds another fence there, and changes nothing.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from gateway.directory import Directory
from gateway.errors import ClientError, DependencyError, GatewayError, LedgerUnavailable, SessionUnknown
from gateway.ledger.steps import BUCKETS, Answer, Ledger, Pending, Record, Snapshot, Step, bucket_of
from gateway.policy.model import Product, SessionState
from gateway.tasks import Tasks
from gateway.telemetry import Telemetry

ROUND_SECONDS = 5.0
BUCKETS_A_TICK = 16
MAX_AT_ONCE = 32
LEASE_SECONDS = 5.0
AWAY_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_UNKNOWN_SECONDS = 3600.0
"""Where the upstream does not know the session any more: it may be gone for good, and asking does not bring it back."""
MAX_EXPECTED = 100_000
MAX_REMEMBERED = 10_000

log = structlog.get_logger(__name__)


class Reconciler:
    """`list_products` asks the upstream for a session's products, whole or an error. `lease_seconds`: how long one
    settlement may take, with all that it asks; who takes longer finds its work done by another."""

    def __init__(
        self,
        ledger: Ledger,
        directory: Directory,
        list_products: Callable[[str], Awaitable[tuple[Product, ...]]],
        telemetry: Telemetry,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._directory = directory
        self._list_products = list_products
        self._telemetry = telemetry
        self._lease_seconds = lease_seconds
        self._max_at_once = MAX_AT_ONCE
        self._settling = Tasks("reconciler")
        self._expected: list[tuple[float, int]] = []
        self._failures: dict[str, int] = {}
        self._pending = [0] * BUCKETS
        self._rest_seconds = min(ledger.hold_seconds, ledger.late_apply_seconds)
        self._rests_until = [0.0] * BUCKETS

    def expect(self, session_id: str, in_seconds: float) -> None:
        """Look at this session's bucket at that time, besides the round."""
        self._expect(bucket_of(session_id), in_seconds)

    def _expect(self, bucket: int, in_seconds: float) -> None:
        if len(self._expected) < MAX_EXPECTED:
            heapq.heappush(self._expected, (asyncio.get_running_loop().time() + in_seconds, bucket))

    async def run(self) -> None:
        """Visit the buckets round and round, until cancelled. No more is claimed than can be begun at once, so that a
        slow upstream costs no lease; and nothing that one operation or one bucket meets keeps the others waiting: a
        Cluster that lacks a master settles what the others have."""
        loop = asyncio.get_running_loop()
        position = 0
        while True:
            began = loop.time()
            await self._settling.below(self._max_at_once)
            free = self._max_at_once - len(self._settling)
            turn = range(position, min(position + BUCKETS_A_TICK, position + free, BUCKETS))
            due = self._due(began, free)
            buckets = list(due.union(bucket for bucket in turn if self._rests_until[bucket] <= began))
            limit = max(1, free // max(1, len(buckets)))
            found = await asyncio.gather(*(self._claim(bucket, limit) for bucket in buckets), return_exceptions=True)
            for bucket, one in zip(buckets, found, strict=True):
                if isinstance(one, BaseException):
                    self._not_visited(bucket, one, expected=bucket in due)
            position = turn.stop % BUCKETS
            if position == 0:
                self._telemetry.in_doubt(sum(self._pending))
            await asyncio.sleep(max(0.0, ROUND_SECONDS * len(turn) / BUCKETS - (loop.time() - began)))

    def _not_visited(self, bucket: int, error: BaseException, *, expected: bool) -> None:
        """The next round comes by again, and what somebody expects there is looked at sooner."""
        if not isinstance(error, LedgerUnavailable):
            log.error("reconciler_failed", exc_info=error)
        if expected:
            self._expect(bucket, AWAY_SECONDS)

    def _due(self, now: float, limit: int) -> set[int]:
        """The buckets that somebody expects something in by now."""
        buckets: set[int] = set()
        while self._expected and self._expected[0][0] <= now and len(buckets) < limit:
            buckets.add(heapq.heappop(self._expected)[1])
        return buckets

    async def visit(self, bucket: int) -> int:
        """Settle what is due in a bucket, all of it; returns how many operations are pending there."""
        pending, begun = await self._claim(bucket, self._max_at_once)
        await asyncio.gather(*begun)
        return pending

    async def _claim(self, bucket: int, limit: int) -> tuple[int, list[asyncio.Task[None]]]:
        """How many operations are pending in a bucket, and the settlements of those claimed, begun."""
        asked_at = asyncio.get_running_loop().time()
        pending, claimed = await self._ledger.claim(bucket, self._lease_seconds, limit)
        self._pending[bucket] = pending
        if pending == 0:
            self._rests_until[bucket] = asked_at + self._rest_seconds
        if len(claimed) == limit:
            self._expect(bucket, 0.0)
        return pending, [self._settling.start(self._settle_one(one)) for one in claimed]

    async def _settle_one(self, pending: Pending) -> None:
        try:
            said = await self.settle(pending)
        except Exception as error:
            said = await self._postpone(pending, error)
        else:
            self._failures.pop(pending.operation, None)
        self._telemetry.settled(said)
        if said == "stale":
            self.expect(pending.session_id, 0.3)

    async def _postpone(self, pending: Pending, error: Exception) -> str:
        """Try again in 1 s, 2 s, 4 s …"""
        failures = self._failures.pop(pending.operation, 0)
        longest = LONGEST_PAUSE_UNKNOWN_SECONDS if isinstance(error, ClientError) else LONGEST_PAUSE_SECONDS
        pause = min(2.0 ** min(failures, 20), longest)
        self._failures[pending.operation] = failures + 1
        if len(self._failures) > MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]
        log.warning(
            "settlement_postponed",
            decision_id=pending.operation,
            session_id=pending.session_id,
            reason=error.reason if isinstance(error, GatewayError) else "internal_error",
            error=error.detail if isinstance(error, GatewayError) else repr(error),
            pause_seconds=pause,
            exc_info=None if isinstance(error, GatewayError) else error,
        )
        with suppress(LedgerUnavailable):
            await self._ledger.postpone(pending, pause)
        self.expect(pending.session_id, pause)
        return "postponed"

    async def close(self) -> None:
        """What is being settled is left to another gateway, once its lease is over."""
        await self._settling.cancel()

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

    async def look_early(self, session_id: str) -> bool:
        """Settle what the upstream's list shows to have been applied already, without waiting until nothing can be
        applied any more. Returns whether a product is still leaving, whose slot comes back once that is settled.
        Raises `LedgerUnavailable`."""
        snapshot = await self._ledger.snapshot(session_id)
        leaving = False
        for operation, records in snapshot.records.items() if snapshot is not None else ():
            assert snapshot is not None
            open_still = True
            if all(record.in_doubt for record in records):
                count = max(record.number for record in records) + 1
                with suppress(DependencyError, SessionUnknown):
                    asked = Pending(session_id, operation, count, "")
                    answer, _ = await self._ask_upstream(asked, snapshot, records)
                    open_still = answer.said != "settled"
            leaving = leaving or (open_still and any(_leaves(record, snapshot) for record in records))
        return leaving

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


def _leaves(record: Record, snapshot: Snapshot) -> bool:
    """Whether a product is on its way out, or gone, and has a slot. One that nobody answered for is not meant: that
    takes as long as the upstream may apply it."""
    gives = record.kind == "g" and (record.sure or not record.in_doubt)
    return gives and snapshot.state is SessionState.preparing and snapshot.slot(record.product_id) is not None


def _in_order(pending: Pending, steps: dict[int, Step]) -> list[Step]:
    """An operation's steps by the number of their record; a number without a record is a step of nothing."""
    return [steps.get(number, Step("g")) for number in range(pending.records)]
