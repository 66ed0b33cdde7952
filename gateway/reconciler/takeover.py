"""Sessions whose steps the ledger missed while Redis was away: taken over from the upstream's list afterwards.

Only sessions without a cap, and steps that need no slot, go on without the ledger. Each is compared as soon as Redis is
back, and once more when the upstream can no longer apply what it did not answer.
"""

from __future__ import annotations

import asyncio

import structlog

from gateway.directory import Directory
from gateway.errors import GatewayError
from gateway.ledger.steps import Ledger
from gateway.reconciler.opening import Opening

PAUSE_SECONDS = 0.5
MAX_SESSIONS = 100_000

log = structlog.get_logger(__name__)


class Takeovers:
    def __init__(self, ledger: Ledger, directory: Directory, opening: Opening) -> None:
        self._ledger = ledger
        self._directory = directory
        self._opening = opening
        self._waiting: dict[str, list[float]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, session_id: str) -> None:
        """A step of this session was not recorded just now."""
        if len(self._waiting) >= MAX_SESSIONS and session_id not in self._waiting:
            log.error("takeover_forgotten", session_id=session_id)
            return
        now = asyncio.get_running_loop().time()
        self._waiting[session_id] = [now, now + self._ledger.late_apply_seconds]

    async def run(self) -> None:
        """Compare what is due, while Redis is there, until cancelled."""
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            now = asyncio.get_running_loop().time()
            for session_id, due in list(self._waiting.items()):
                if due[0] <= now and self._ledger.available:
                    await self._take_over(session_id, due)

    async def _take_over(self, session_id: str, due: list[float]) -> None:
        try:
            session = await self._directory.fresh_session(session_id)
            account = await self._directory.account(session.account_id)
            await self._opening.open(session_id, account, "takeover")
        except GatewayError as error:
            log.warning("takeover_postponed", session_id=session_id, reason=error.reason, error=error.detail)
            due[0] = asyncio.get_running_loop().time() + 2.0
            return
        due.pop(0)
        if not due and self._waiting.get(session_id) is due:
            del self._waiting[session_id]
