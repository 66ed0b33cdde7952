"""Settlements: what is written to the ledger once an outcome is known, whether the client still waits or not.

A settlement is sent when the outcome is known and the client's answer does not wait for it: until it arrives, the slot
is held, which never lets one product too many in; and if it never arrives, because this gateway dies or Redis is away,
the record is found when its hold is over, and the upstream's list says what became of it. Where Redis has lost the
session, and the record with it, the settlement opens the session anew.

The ledger is asked before the caller goes on. Nearly always its first answer is the last word; only where it is not,
a task goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import structlog

from gateway.errors import GatewayError, SessionUnknown
from gateway.ledger.steps import Answer, Ledger, Step, answer_of, answered
from gateway.policy.model import SessionState
from gateway.reconciler.doubt import Reconciler
from gateway.reconciler.opening import Opening
from gateway.reconciler.takeover import Takeovers
from gateway.tasks import Tasks

LOOK_SECONDS = 0.3
MAX_PAUSE_SECONDS = 0.2
"""Between two attempts. Short, since a start may come as soon as Redis is back: a removal that it has not been told of
by then counts. While Redis is away an attempt costs nothing, for its lane refuses at once."""

log = structlog.get_logger(__name__)


class Settlements:
    """Runs settlements to their end; `hold_seconds` is how long it is worth trying, since the reconciler then looks."""

    def __init__(
        self, ledger: Ledger, opening: Opening, reconciler: Reconciler, takeovers: Takeovers, hold_seconds: float
    ) -> None:
        self._ledger = ledger
        self._opening = opening
        self._reconciler = reconciler
        self._takeovers = takeovers
        self._hold_seconds = hold_seconds
        self.tasks = Tasks("settlements")

    def begin(self, session_id: str, operation: str, steps: Sequence[Step]) -> None:
        """What was recorded is forwarded now: until it is settled, this gateway knows of it, whatever Redis knows."""
        self._opening.on_their_way.begin(session_id, operation, steps)

    def commit(
        self,
        session_id: str,
        operation: str,
        event: str,
        steps: Sequence[Step],
        look: Callable[[], Awaitable[SessionState | None]] | None = None,
    ) -> asyncio.Future[Answer | None]:
        """The upstream said yes. `look`: how the session is seen afresh, where a slot may come back."""

        def settled(answer: Answer | None) -> Answer | None:
            self._opening.on_their_way.end(session_id, operation)
            if answer is not None and answer.said == "pending":
                self._reconciler.expect(session_id, LOOK_SECONDS)
            return answer

        async def look_first(look: Callable[[], Awaitable[SessionState | None]]) -> Answer | None:
            answer = None
            try:
                seen = await look()
                answer = await self._try(
                    session_id, operation, lambda: self._ledger.commit(session_id, operation, event, steps, seen)
                )
            finally:
                settled(answer)
            return answer

        if look is not None:
            return self.tasks.start(look_first(look))
        ask = partial(self._ledger.ask_commit, session_id, operation, event, steps)
        return self._settle(session_id, operation, ask, settled)

    def release(self, session_id: str, operation: str, records: int) -> asyncio.Future[Answer | None]:
        """The upstream said no, or was never asked."""
        self._opening.on_their_way.end(session_id, operation)
        return self._settle(session_id, operation, partial(self._ledger.ask_release, session_id, operation, records))

    def doubt(self, session_id: str, operation: str, steps: Sequence[Step]) -> asyncio.Future[Answer | None]:
        """Nobody knows yet: the reconciler looks when the upstream can no longer apply it."""
        look_seconds = self._ledger.late_apply_seconds + LOOK_SECONDS
        self._opening.on_their_way.doubt(session_id, operation, steps, look_seconds)
        self._reconciler.expect(session_id, look_seconds)
        return self._settle(session_id, operation, partial(self._ledger.ask_doubt, session_id, operation, steps))

    def end(self, session_id: str, operation: str) -> asyncio.Future[Answer | None]:
        """The upstream has ended the session; one that the ledger does not have needs no end."""
        return self.tasks.start(
            self._try(session_id, operation, lambda: self._ledger.end(session_id, operation), opens=False)
        )

    def open(self, opening: Awaitable[None], operation: str) -> None:
        """A new session's ledger, ahead of its first attach. Where it fails, that attach opens it."""

        async def settle() -> None:
            try:
                await opening
            except GatewayError as error:
                log.info("opening_left_to_first_attach", decision_id=operation, error=error.detail)

        self.tasks.start(settle())

    def _settle(
        self,
        session_id: str,
        operation: str,
        ask: Callable[[], asyncio.Future[Any]],
        settled: Callable[[Answer | None], Answer | None] = lambda answer: answer,
    ) -> asyncio.Future[Answer | None]:
        """Ask now, and go on from the reply; `settled` is told how it ended, once, whichever way that was."""

        async def go_on(*replies: asyncio.Future[Any]) -> Answer | None:
            answer, asked = None, list(replies)
            try:
                answer = await self._try(session_id, operation, lambda: answered(ask, asked.pop() if asked else None))
            finally:
                settled(answer)
            return answer

        def then(reply: asyncio.Future[Any]) -> Answer | Coroutine[Any, Any, Answer | None] | None:
            try:
                answer = answer_of(reply.result())
            except asyncio.CancelledError:
                return settled(None)
            except Exception:
                return go_on(reply)
            return settled(answer) if answer.said != "missing" else go_on(reply)

        try:
            return self.tasks.after(ask(), then)
        except Exception:
            # Whoever settles has an answer to give, which must not be lost by it.
            return self.tasks.start(go_on())

    async def _try(
        self, session_id: str, operation: str, step: Callable[[], Awaitable[Answer]], *, opens: bool = True
    ) -> Answer | None:
        """Again and again while Redis is away. A session that Redis has lost is opened first (`opens`), from the
        upstream's list and with this operation on its way."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._hold_seconds
        pause = 0.05
        while True:
            try:
                answer = await step()
                if answer.said == "missing" and opens:
                    await self._opening.compare(session_id, operation)
                    answer = await step()
                if answer.said != "missing" or not opens:
                    return answer
                problem = "the ledger lost the session"
            except SessionUnknown as error:
                log.warning("settlement_without_session", decision_id=operation, error=error.detail)
                return None
            except GatewayError as error:
                problem = error.detail
            if loop.time() + pause > until:
                log.warning("settlement_left_to_reconciler", decision_id=operation, error=problem)
                self._takeovers.add(session_id)
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
