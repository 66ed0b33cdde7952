"""What went past the gateway, found by looking: open sessions are compared with the upstream's list, round and round.

The rate is bounded, for all gateways together and for each of the ledger's servers: one gateway at a time sweeps a
server's sessions, one after the other. A look only finds out where something differs. What is done about it is done by
the steps that believe no list from before a change:

    the list has a product without a slot     adopted as used (`opening`); counted and logged, for an alert
    a slot is attached, the list lacks it     put in doubt as a detach: the reconciler asks the list again, and before
                                              the start the slot comes back (`doubt`)
    the session has started, or ended         learnt

What has a record is on its way through a gateway, and is left to it. Nothing is done where the upstream gives an error
or less than a whole list; the sweep then pauses, since the next question would fare no better.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog
from msgspec import Struct

from gateway.directory import Directory
from gateway.errors import DependencyError, GatewayError, LedgerUnavailable, SessionUnknown
from gateway.ledger.sessions import Sessions
from gateway.ledger.steps import Ledger, Snapshot, Step
from gateway.policy.model import Product, SessionState
from gateway.reconciler.opening import Opening
from gateway.telemetry import Telemetry

PAUSE_SECONDS = 0.25
"""Between two pieces of a round. With pieces of 250 keys, a million ended sessions are passed over in 17 minutes."""
AWAY_SECONDS = 5.0
"""While the upstream fails, Redis is away, or another gateway sweeps."""

log = structlog.get_logger(__name__)


class Difference(Struct, frozen=True):
    """`unknown`: attached, and the ledger does not say so. `gone`: the ledger says attached, and it is not. `started`:
    the upstream says live, the ledger preparing."""

    unknown: tuple[str, ...]
    gone: tuple[str, ...]
    started: bool


def difference(snapshot: Snapshot, listed: Iterable[str], foreign: Iterable[str], state: SessionState) -> Difference:
    """What the list and the session's state say that the ledger does not, apart from what is on its way. `listed`: all
    products; `foreign`: those of them that count."""
    there, moving = frozenset(listed), on_its_way(snapshot)
    attached = [slot.product_id for slot in snapshot.slots if slot.attached]
    return Difference(
        unknown=tuple(product_id for product_id in foreign if product_id not in moving.union(attached)),
        gone=tuple(product_id for product_id in attached if product_id not in moving.union(there)),
        started=state is SessionState.live
        and snapshot.state is SessionState.preparing
        and not any(record.kind == "s" for records in snapshot.records.values() for record in records),
    )


def on_its_way(snapshot: Snapshot) -> set[str]:
    """Products with a record."""
    return {record.product_id for records in snapshot.records.values() for record in records}


class Drift:
    """`list_products` asks the upstream for a session's products, whole or an error. `sessions_per_second`: more than
    0."""

    def __init__(
        self,
        ledger: Ledger,
        sessions: Sessions,
        directory: Directory,
        list_products: Callable[[str], Awaitable[tuple[Product, ...]]],
        opening: Opening,
        telemetry: Telemetry,
        sessions_per_second: float,
    ) -> None:
        self._ledger = ledger
        self._sessions = sessions
        self._directory = directory
        self._list_products = list_products
        self._opening = opening
        self._telemetry = telemetry
        self._seconds_each = 1.0 / sessions_per_second

    async def run(self) -> None:
        """Sweep, until cancelled. A server that is away does not keep the others from being swept."""
        while True:
            swept = False
            for key in self._sessions.rounds():
                try:
                    swept = await self.sweep(key) or swept
                except LedgerUnavailable:
                    pass  # Its lane has said so.
                except Exception:
                    log.exception("sweep_failed")
            await asyncio.sleep(PAUSE_SECONDS if swept else AWAY_SECONDS)

    async def sweep(self, key: str) -> bool:
        """One piece of one server's round; False where another gateway has it, or the upstream fails."""
        loop = asyncio.get_running_loop()
        sessions = await self._sessions.piece(key)
        for session_id in sessions or ():
            began = loop.time()
            if not await self._sessions.keep(key):
                return False
            try:
                await self.look(session_id)
                self._telemetry.swept()
            except SessionUnknown:
                pass  # The upstream has let go of it; the ledger will, in time.
            except DependencyError as error:
                log.warning("sweep_paused", session_id=session_id, reason=error.reason, error=error.detail)
                return False
            except GatewayError as error:
                log.warning("sweep_skipped", session_id=session_id, reason=error.reason, error=error.detail)
            await asyncio.sleep(max(0.0, self._seconds_each - (loop.time() - began)))
        return sessions is not None

    async def look(self, session_id: str) -> None:
        """Compare one session, and set right what differs. Raises what the directory, the list or the ledger fail
        with."""
        snapshot = await self._ledger.snapshot(session_id)
        if snapshot is None or snapshot.state is SessionState.ended:
            return
        session = await self._directory.fresh_session(session_id)
        account = await self._directory.account(session.account_id)
        if session.state is SessionState.ended:
            log.info("ended_past_the_gateway", session_id=session_id)
            await self._ledger.end(session_id, "drift")
            return
        if not account.recorded:
            return
        products = await self._list_products(session_id)
        listed = [product.product_id for product in products]
        foreign = [product.product_id for product in products if not account.owns(product)]
        found = difference(snapshot, listed, foreign, session.state)
        if found.gone:
            await self._doubt(session_id, snapshot, found.gone)
        if found.unknown or found.started:
            adopted = await self._opening.compare(session_id, "drift")
            if adopted:
                self._telemetry.drifted("attached", len(adopted))
                log.warning("attached_past_the_gateway", session_id=session_id, product_ids=adopted)

    async def _doubt(self, session_id: str, snapshot: Snapshot, gone: tuple[str, ...]) -> None:
        """Unless something was written since the snapshot: then it may be a detach through a gateway that the look
        came between, and the next round sees; one that is asked has a record, before it writes. The operation's name is
        new to the session, as its version is."""
        now = await self._ledger.snapshot(session_id)
        if now is None or now.version != snapshot.version or not on_its_way(now).isdisjoint(gone):
            return
        steps = [Step("g", product_id) for product_id in gone]
        await self._ledger.doubt(session_id, f"drift-{snapshot.version}", steps)
        self._telemetry.drifted("detached", len(gone))
        log.warning("detached_past_the_gateway", session_id=session_id, product_ids=gone)
