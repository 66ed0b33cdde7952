"""How a session comes into the ledger: with what the upstream already has, never with a fresh count.

A session may be new, or may have been made past the gateway, or Redis may have lost it: the ledger can't tell these
apart, so each of them starts from the upstream's list. What was read is believed only if nothing was written meanwhile
(`adopt`). What this gateway has on its way is not in the list yet, and may be soon: it is held from the beginning, or a
session that Redis lost would have places for others in the meantime.

The list does not show what was removed while live and counts all the same (N5). A live session that the ledger does
not have is therefore looked up in the exported journal as well, where one is configured (`recall`); without one, that
is forgotten with Redis. A ledger that exists is believed, also where Redis was restored from an older backup and knows
less than was: after such a restore, delete the ledger's keys, so that each session is opened anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import structlog

from gateway.directory import Directory
from gateway.errors import LedgerUnavailable
from gateway.ledger.steps import Ledger, OnItsWay, Step
from gateway.policy.model import Account, Product, SessionState
from gateway.reconciler.recall import Recall, Recalled
from gateway.tasks import Tasks
from gateway.telemetry import Telemetry

ATTEMPTS = 5

log = structlog.get_logger(__name__)


class OnTheirWay:
    """The operations that this gateway has forwarded, or is about to, until it has settled them; one in doubt until the
    upstream can no longer apply it."""

    def __init__(self) -> None:
        self._sessions: dict[str, dict[str, OnItsWay]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._sessions.values()))

    def begin(self, session_id: str, operation: str, steps: Sequence[Step]) -> None:
        self._sessions.setdefault(session_id, {})[operation] = OnItsWay(operation, tuple(steps))

    def doubt(self, session_id: str, operation: str, steps: Sequence[Step], seconds: float) -> None:
        """Nobody knows what became of it, for so long."""
        self._sessions.setdefault(session_id, {})[operation] = OnItsWay(operation, tuple(steps), True)
        asyncio.get_running_loop().call_later(seconds, self.end, session_id, operation)

    def end(self, session_id: str, operation: str) -> None:
        operations = self._sessions.get(session_id)
        if operations is not None and operations.pop(operation, None) is not None and not operations:
            del self._sessions[session_id]

    def of(self, session_id: str) -> list[OnItsWay]:
        return list(self._sessions.get(session_id, {}).values())


class Opening:
    """`list_products` asks the upstream for a session's products, whole or an error."""

    def __init__(
        self,
        ledger: Ledger,
        directory: Directory,
        list_products: Callable[[str], Awaitable[tuple[Product, ...]]],
        telemetry: Telemetry,
        recall: Recall | None = None,
    ) -> None:
        self._ledger = ledger
        self._recall = recall
        self._directory = directory
        self._list_products = list_products
        self._telemetry = telemetry
        self._running: dict[str, asyncio.Task[tuple[str, ...]]] = {}
        self._tasks = Tasks("openings")
        self.on_their_way = OnTheirWay()

    async def open(self, session_id: str, account: Account, operation: str) -> None:
        """Give the ledger a session that it does not have. All who want the same session at once wait for one opening.

        Raises `LedgerUnavailable`, or what the directory or the upstream's list failed with.
        """
        running = self._running.get(session_id)
        if running is None:
            running = self._tasks.start(self._adopt(session_id, account, operation, must_compare=False))
            self._running[session_id] = running
            running.add_done_callback(lambda _: self._running.pop(session_id, None))
        # Whoever gives up must not end it for the others.
        await asyncio.wait((running,))
        running.result()

    async def compare(self, session_id: str, operation: str) -> tuple[str, ...]:
        """Give the ledger what the upstream has of a session, whether the ledger knows the session or not; returns the
        products that a session which it knew had no slot for.

        Raises what `open` raises, and what the directory fails with.
        """
        session = await self._directory.fresh_session(session_id)
        account = await self._directory.account(session.account_id)
        return await self._adopt(session_id, account, operation, must_compare=True)

    async def close(self) -> None:
        await self._tasks.cancel()

    async def _adopt(self, session_id: str, account: Account, operation: str, *, must_compare: bool) -> tuple[str, ...]:
        recalled: Recalled | None = None
        for _ in range(ATTEMPTS):
            snapshot = await self._ledger.snapshot(session_id)
            listed = await self._list_products(session_id)
            session = await self._directory.fresh_session(session_id)
            foreign = [product.product_id for product in listed if not account.owns(product)]
            lost = snapshot is None and session.state is SessionState.live
            if lost and recalled is None and self._recall is not None:
                # That may take long, so the list is asked anew.
                recalled = await self._recall.counted(session_id)
                continue
            removed = sorted(recalled.products.difference(foreign)) if lost and recalled is not None else []
            version = snapshot.version if snapshot is not None else ""
            on_their_way = self.on_their_way.of(session_id)
            answer = await self._ledger.adopt(
                session_id, operation, version, session.state, foreign, on_their_way, removed
            )
            if answer.said == "adopted":
                if snapshot is not None:
                    self._telemetry.adopted(answer.new)
                    return tuple(product_id for product_id in foreign if snapshot.slot(product_id) is None)
                if lost:
                    self._opened_live(session_id, foreign, removed, recalled)
                return ()
            if snapshot is None and not must_compare and not on_their_way:
                return ()  # Another gateway has opened it.
        raise LedgerUnavailable(f"Session {session_id} changes too quickly to be compared with the upstream's list.")

    def _opened_live(
        self, session_id: str, listed: Sequence[str], removed: Sequence[str], recalled: Recalled | None
    ) -> None:
        """It may be one that Redis lost, so how it got its count is said."""
        journal = "not configured" if recalled is None else "with gaps" if recalled.gaps else "read"
        level = logging.WARNING if journal == "with gaps" else logging.INFO
        log.log(level, "live_session_opened", session_id=session_id, listed=listed, removed=removed, journal=journal)
        self._telemetry.recovered(len(removed))
