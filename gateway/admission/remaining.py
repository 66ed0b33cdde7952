"""What remains, for the headers of answers that took no slot: own products, and requests refused before the count.

Asked beside, and waited for only briefly: no answer fails for its headers' sake, and none is late by more than
`OPEN_WAIT_SECONDS`. What is not known is not told, and never guessed: a session that the ledger does not have is opened
first, since nothing used is not the same as nothing known. Of somebody else's session nothing is told.
"""

from __future__ import annotations

import asyncio

from gateway.admission.decision import Decision
from gateway.admission.gate import Gate
from gateway.errors import ClientError, GatewayError
from gateway.policy.model import Account
from gateway.tasks import within

COUNT_WAIT_SECONDS = 0.02
OPEN_WAIT_SECONDS = 0.25

Counting = asyncio.Future[bytes | None]


def ask(gate: Gate, decision: Decision) -> Counting | None:
    """Ask for the count where a cap holds in a session, so that it is there by the time it is wanted."""
    if not decision.cap or decision.session_id is None:
        return None
    counting = gate.ledger.used(decision.session_id)
    counting.add_done_callback(_seen)
    return counting


async def take(gate: Gate, decision: Decision, account: Account, counting: Counting | None) -> None:
    """Take the count into the decision, where it was asked for and has come."""
    if counting is None:
        return
    if not counting.done():
        await asyncio.wait({counting}, timeout=COUNT_WAIT_SECONDS)
    if not counting.done() or counting.exception() is not None:
        return
    used = counting.result()
    if used is None:
        used = await _opened(gate, decision, account)
    if used is not None:
        decision.used = int(used)


def judge(gate: Gate, decision: Decision, account_id: str | None) -> None:
    """The cap, where it is at hand: who asks too often costs nothing more."""
    account = gate.directory.peek_account(account_id) if account_id is not None else None
    if account is not None and decision.surface is not None:
        decision.verdict = gate.evaluate(account, decision.surface, decision.now)


async def tell(gate: Gate, decision: Decision, account_id: str, error: GatewayError) -> None:
    """What is known of an account that is answered with an error. Only where the client's fault is all that is wrong
    is anything asked for: what has just failed is not asked again."""
    try:
        async with within(OPEN_WAIT_SECONDS):
            await _tell(gate, decision, account_id, asks=isinstance(error, ClientError))
    except (TimeoutError, GatewayError):
        pass


async def _tell(gate: Gate, decision: Decision, account_id: str, *, asks: bool) -> None:
    directory, surface, session_id = gate.directory, decision.surface, decision.session_id
    account = directory.peek_account(account_id)
    if account is None and asks:
        account = await directory.account(account_id)
    if account is None or surface is None:
        return
    if decision.verdict is None:
        decision.verdict = gate.evaluate(account, surface, decision.now)
    if not decision.cap or session_id is None or decision.used is not None or not asks:
        return
    session = directory.peek_session(session_id) or await directory.session(session_id)
    if session.account_id == account_id and (counting := ask(gate, decision)) is not None:
        used = await counting
        decision.used = None if used is None else int(used)


async def _opened(gate: Gate, decision: Decision, account: Account) -> bytes | None:
    """The count of a session that the ledger did not have; None where it can't be had in time."""
    session_id = decision.session_id
    assert session_id is not None
    try:
        async with within(OPEN_WAIT_SECONDS):
            await gate.opening.open(session_id, account, decision.id)
            return await gate.ledger.used(session_id)
    except (TimeoutError, GatewayError):
        return None


def _seen(counting: Counting) -> None:
    """Nobody may be waiting any more for what a failed count has to say."""
    if not counting.cancelled():
        counting.exception()
