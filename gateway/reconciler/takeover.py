"""Sessions whose steps the ledger missed while Redis was away: taken over from the upstream's list afterwards.

Only sessions without a cap, and steps that need no slot, go on without the ledger. Each is compared as soon as Redis is
back, and once more when the upstream can no longer apply what it did not answer. A comparison only adds; what was
detached meanwhile is put in doubt, so that the reconciler asks the list before its slot comes back. A session that the
upstream does not know by then has ended and is gone: there is nothing to take over.
"""

from __future__ import annotations

import asyncio

import structlog

from gateway.errors import GatewayError, SessionUnknown
from gateway.ledger.steps import Ledger, Step
from gateway.reconciler.opening import Opening
from gateway.telemetry import Seldom

PAUSE_SECONDS = 0.5
AGAIN_SECONDS = 2.0
MAX_SESSIONS = 100_000
MAX_DETACHED = 1000
MAX_AT_ONCE = 8
LOG_SECONDS = 1.0
"""At most one line about takeovers that wait in so long: without the upstream, each fails every `AGAIN_SECONDS`."""

log = structlog.get_logger(__name__)


class _Missed:
    """When a session is to be compared, from when on it is given up where the upstream does not know it, and which
    operations detached what without a record."""

    def __init__(self) -> None:
        self.due: list[float] = []
        self.given_up_at = 0.0
        self.detached: dict[str, str] = {}


class Takeovers:
    def __init__(self, ledger: Ledger, opening: Opening) -> None:
        self._ledger = ledger
        self._opening = opening
        self._waiting: dict[str, _Missed] = {}
        self._say = Seldom(LOG_SECONDS)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, session_id: str, operation: str = "", detached: str | None = None) -> None:
        """A step of this session was not recorded just now; `detached` is the product that it may have taken out."""
        if len(self._waiting) >= MAX_SESSIONS and session_id not in self._waiting:
            log.error("takeover_forgotten", session_id=session_id)
            return
        missed = self._waiting.setdefault(session_id, _Missed())
        now = asyncio.get_running_loop().time()
        missed.given_up_at = now + self._ledger.late_apply_seconds
        missed.due = [now, missed.given_up_at]
        if detached is not None and len(missed.detached) < MAX_DETACHED:
            missed.detached[operation] = detached

    async def run(self) -> None:
        """Compare what is due, while Redis is there, until cancelled."""
        places = asyncio.Semaphore(MAX_AT_ONCE)

        async def one(session_id: str, missed: _Missed) -> None:
            async with places:
                await self._take_over(session_id, missed)

        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            if self._ledger.available:
                now = asyncio.get_running_loop().time()
                due = [(session_id, missed) for session_id, missed in self._waiting.items() if missed.due[0] <= now]
                await asyncio.gather(*(one(session_id, missed) for session_id, missed in due))

    async def _take_over(self, session_id: str, missed: _Missed) -> None:
        due = missed.due
        try:
            await self._opening.compare(session_id, "takeover")
            for operation, product_id in list(missed.detached.items()):
                # Under a name of its own: what is left of the operation itself is still being released.
                await self._ledger.doubt(session_id, f"{operation}-missed", [Step("g", product_id)])
                missed.detached.pop(operation, None)
        except GatewayError as error:
            now = asyncio.get_running_loop().time()
            if not isinstance(error, SessionUnknown) or now < missed.given_up_at:
                self._postponed(session_id, error)
                due[0] = now + AGAIN_SECONDS
                return
            log.warning("takeover_without_session", session_id=session_id, error=error.detail)
            due.clear()
        except Exception:
            log.exception("takeover_failed", session_id=session_id)
            due[0] = asyncio.get_running_loop().time() + AGAIN_SECONDS
            return
        else:
            due.pop(0)
        if not due and missed.due is due:
            del self._waiting[session_id]

    def _postponed(self, session_id: str, error: GatewayError) -> None:
        if self._say.now():
            waiting = len(self._waiting)
            log.warning(
                "takeover_postponed", session_id=session_id, reason=error.reason, error=error.detail, waiting=waiting
            )
