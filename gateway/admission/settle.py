"""Settlements: what is written to the ledger once an outcome is known, whether the client still waits or not.

A settlement is sent when the outcome is known and the client's answer does not wait for it: until it arrives, the slot
is held, which never lets one product too many in; and if it never arrives, because this gateway dies or Redis is away,
the record is found when its hold is over, and the upstream's list says what became of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from gateway.errors import GatewayError, LedgerUnavailable
from gateway.ledger.steps import Answer, Ledger, Step
from gateway.policy.model import SessionState
from gateway.reconciler.doubt import Reconciler
from gateway.tasks import Tasks

LOOK_SECONDS = 0.3

log = structlog.get_logger(__name__)


class Settlements:
    """Runs settlements to their end; `hold_seconds` is how long it is worth trying, since the reconciler then looks."""

    def __init__(self, ledger: Ledger, reconciler: Reconciler, hold_seconds: float) -> None:
        self._ledger = ledger
        self._reconciler = reconciler
        self._hold_seconds = hold_seconds
        self.tasks = Tasks("settlements")

    def commit(
        self,
        session_id: str,
        operation: str,
        event: str,
        steps: Sequence[Step],
        look: Callable[[], Awaitable[SessionState | None]] | None = None,
    ) -> asyncio.Task[Answer | None]:
        """The upstream said yes. `look`: how the session is seen afresh, where a slot may come back."""

        async def settle() -> Answer | None:
            seen = await look() if look is not None else None
            answer = await self._try(operation, lambda: self._ledger.commit(session_id, operation, event, steps, seen))
            if answer is not None and answer.said == "pending":
                self._reconciler.expect(session_id, LOOK_SECONDS)
            return answer

        return self.tasks.start(settle())

    def release(self, session_id: str, operation: str, records: int) -> asyncio.Task[Answer | None]:
        """The upstream said no, or was never asked."""
        return self.tasks.start(self._try(operation, lambda: self._ledger.release(session_id, operation, records)))

    def doubt(self, session_id: str, operation: str, steps: Sequence[Step]) -> asyncio.Task[Answer | None]:
        """Nobody knows yet: the reconciler looks when the upstream can no longer apply it."""
        self._reconciler.expect(session_id, self._ledger.late_apply_seconds + LOOK_SECONDS)
        return self.tasks.start(self._try(operation, lambda: self._ledger.doubt(session_id, operation, steps)))

    def end(self, session_id: str, operation: str) -> asyncio.Task[Answer | None]:
        return self.tasks.start(self._try(operation, lambda: self._ledger.end(session_id, operation)))

    def open(self, opening: Awaitable[None], operation: str) -> None:
        """A new session's ledger, ahead of its first attach. Where it fails, that attach opens it."""

        async def settle() -> None:
            try:
                await opening
            except GatewayError as error:
                log.info("opening_left_to_first_attach", decision_id=operation, error=error.detail)

        self.tasks.start(settle())

    async def _try(self, operation: str, step: Callable[[], Awaitable[Answer]]) -> Answer | None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._hold_seconds
        pause = 0.05
        while True:
            try:
                return await step()
            except LedgerUnavailable as error:
                if loop.time() + pause > until:
                    log.warning("settlement_left_to_reconciler", decision_id=operation, error=error.detail)
                    return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)
