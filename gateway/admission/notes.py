"""Decisions on their way into the journal, so that a dispute months later can be answered from it.

Each answer to an attach becomes one entry with all that it was decided by: who asked for what, where, by which rule of
which policy version, with which count. It also stands where a ledger step tells of the same operation: the step's event
knows neither the account nor the policy, and to hand them through the scripts would cost every reserve bytes in Redis
and arguments on the way. An entry of its own, under the same decision id, costs the request nothing: it is appended to
a queue, and written in batches behind its answer.

A batch goes to the next buckets in turn, whatever its sessions: one script call for many, and nobody can push the
events of a session out of its bucket by what he asks of it. A refusal by the policy that no step tells of (no foreign
products at all, a session known to be full) is a `refused` event for the room's clients besides, and so goes to the
session's own; of one session a few in a second are, since a crowd at its door must not push the events of the others
out of their bucket. Errors are not: they say nothing of the count, and may be somebody else's doing. Who has not said
who they are, and what a limit refused, is not in the journal: that would let strangers push its entries out.

The queue has a limit. While Redis is away it fills, and what does not fit is dropped: counted in a metric, said in one
log line, and said in the journal itself once it can be written again. A write whose answer was lost is repeated, so an
entry may be there twice.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Sequence
from itertools import islice

import msgspec
import structlog

from gateway.admission.decision import Decision
from gateway.errors import ClientError, GatewayError, LedgerUnavailable, TooManyRequests
from gateway.ledger.lines import Decided, Verdict
from gateway.ledger.steps import BUCKETS, bucket_of
from gateway.ledger.streams import Note, Streams
from gateway.telemetry import Telemetry

FLUSH_SECONDS = 0.01
"""Short, since the steps of others wait for Redis behind a batch: of a tenth of a second it takes a millisecond."""
AWAY_SECONDS = 0.5
TOLD_A_SECOND = 10
"""Refusals that no step tells of, of one session: the room's clients see no more of them."""
CLOSE_SECONDS = 1.0
MAX_WAITING = 20_000
BATCH = 256
BATCH_OF_A_BUCKET = 32
"""Small, since who looks for a step's event among a bucket's latest entries (`slots.lua`) must find it behind one."""

log = structlog.get_logger(__name__)

_encode = msgspec.json.Encoder().encode

_Waiting = tuple[Decision, Verdict, str, Sequence[str], bool, int]
"""Decision, verdict, reason, products refused, whether the entry `tells` the room's clients, the upstream's status."""


class Notes:
    """`gateway` names this process in the entries."""

    def __init__(self, streams: Streams, telemetry: Telemetry, gateway: str = "") -> None:
        self._streams = streams
        self._telemetry = telemetry
        self._gateway = gateway or f"{socket.gethostname()}:{os.getpid()}"
        self._waiting: deque[_Waiting] = deque()
        self._added = asyncio.Event()
        self._dropped = 0
        self._bucket = bucket_of(self._gateway)
        self._second = 0
        self._told: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def allowed(self, decision: Decision, status: int) -> None:
        """The policy let it pass, and the upstream has answered with this status."""
        self._add((decision, "allowed", "", (), False, status))

    def refused(self, decision: Decision, reason: str, refused: Sequence[str], *, told: bool) -> None:
        """The policy refused these of the products. `told`: a ledger step tells the room's clients."""
        session_id = decision.session_id
        tells = not told and session_id is not None and self._may_tell(session_id, int(decision.now))
        self._add((decision, "refused", reason, refused, tells, 0))

    def _may_tell(self, session_id: str, second: int) -> bool:
        if second != self._second:
            self._second = second
            self._told.clear()
        told = self._told.get(session_id, 0)
        self._told[session_id] = told + 1
        return told < TOLD_A_SECOND

    def failed(self, decision: Decision, error: GatewayError) -> None:
        """It was answered with an error: `refused` where that was the client's fault."""
        known = decision.account_id is not None and not isinstance(error, TooManyRequests)
        if known and decision.operation == "attach":
            verdict: Verdict = "refused" if isinstance(error, ClientError) else "failed"
            self._add((decision, verdict, error.reason, (), False, 0))

    def _add(self, waiting: _Waiting) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(waiting)
            self._added.set()
            return
        if not self._dropped:
            log.error("journal_full", limit=MAX_WAITING, problem="Redis takes no decisions; they are dropped")
        self._dropped += 1
        self._telemetry.journal_dropped()

    async def run(self) -> None:
        """Write what waits, until cancelled."""
        pause = FLUSH_SECONDS
        while True:
            await self._added.wait()
            await asyncio.sleep(pause)
            written = await self._flush()
            if not self._waiting:
                self._added.clear()
            pause = AWAY_SECONDS if not written else FLUSH_SECONDS if len(self._waiting) < BATCH else 0.0

    async def close(self) -> None:
        """Write what still waits, for a second at most. To be called when `run` has ended."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._waiting and await self._flush():
                    pass
        except TimeoutError:
            pass
        if self._waiting:
            self._telemetry.journal_dropped(len(self._waiting))
            log.error("journal_cut", dropped=len(self._waiting))
            self._waiting.clear()

    async def _flush(self) -> bool:
        """Write one batch; False where not all of it could be written, and what was not waits on."""
        batch = self._batch()
        notes = {bucket: [self._note(*waiting) for waiting in share] for bucket, share in batch.items()}
        if dropped := self._dropped:
            said = Note("dropped", "", "", _encode({"count": dropped, "gateway": self._gateway}))
            notes.setdefault(self._bucket, []).append(said)
        writes = self._streams.write(notes)
        results = await asyncio.gather(*(future for _, future in writes), return_exceptions=True)
        # What was added meanwhile stands behind the batch.
        for _ in range(sum(map(len, batch.values()))):
            self._waiting.popleft()
        failed: list[_Waiting] = []
        for (buckets, _), result in zip(writes, results, strict=True):
            if isinstance(result, BaseException):
                failed += [waiting for bucket in buckets for waiting in batch.get(bucket, ())]
                if not isinstance(result, LedgerUnavailable):
                    log.error("journal_failed", exc_info=result)
            elif dropped and self._bucket in buckets:
                log.warning("journal_resumed", dropped=dropped)
                self._dropped -= dropped
        self._waiting.extendleft(reversed(failed))
        return not failed

    def _batch(self) -> dict[int, list[_Waiting]]:
        """The first of what waits, by the bucket that it goes to: a refusal that tells clients to its session's, the
        rest to the one whose turn it is, and to the next where that has its share."""
        self._bucket = (self._bucket + 1) % BUCKETS
        batch: dict[int, list[_Waiting]] = {}
        for waiting in islice(self._waiting, BATCH):
            decision, tells = waiting[0], waiting[4]
            if tells:
                bucket = bucket_of(decision.session_id or "")
            else:
                if len(batch.get(self._bucket, ())) >= BATCH_OF_A_BUCKET:
                    self._bucket = (self._bucket + 1) % BUCKETS
                bucket = self._bucket
            share = batch.get(bucket)
            if share is None:
                share = batch[bucket] = []
            elif len(share) == BATCH_OF_A_BUCKET:
                break
            share.append(waiting)
        return batch

    def _note(
        self, decision: Decision, verdict: Verdict, reason: str, refused: Sequence[str], tells: bool, status: int
    ) -> Note:
        judged = decision.verdict
        used = decision.used
        cap = judged.cap if judged is not None else None
        # By place, in the order of its fields: by name it would take half as long again.
        document = Decided(
            round(decision.now * 1000),
            decision.account_id or "",
            decision.surface or "",
            decision.operation,
            verdict,
            reason,
            judged.rule if judged is not None else "",
            judged.policy_version if judged is not None else "",
            used,
            cap,
            decision.asked,
            refused,
            status,
            self._gateway,
        )
        session_id = decision.session_id or ""
        if tells:
            products = " ".join(refused)
            return Note("refused", session_id, decision.id, _encode(document), products, used or 0, cap or 0)
        return Note("decision", session_id, decision.id, _encode(document))
