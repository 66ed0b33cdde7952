"""What the gateway would answer to one attach, as plain data.

A refusal is the very problem document that a client gets; what is allowed is answered here, with the
notice's own reason. Pure: looks nothing up and reads no clock. Whoever calls it has asked the directory, the
policy and the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from gateway.errors import GatewayError, SessionEnded
from gateway.explain.words import allowed
from gateway.policy.model import Account, Product, SessionState, ShopType, Standing, Surface, Verdict
from gateway.refusals import (
    Help,
    Language,
    Problem,
    SlotView,
    policy_reason,
    refuse_error,
    refuse_policy,
    say,
)


class Snapshot(msgspec.Struct, frozen=True):
    """What the ledger knows of a session. Nothing recorded yet: `used` 0, no slots, the directory's state."""

    session_id: str
    state: SessionState
    used: int
    slots: tuple[SlotView, ...]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and what led to it. What does not apply, or is not known, is unset and left out of the JSON.

    `rule` is the policy's rule that was applied, `notice` the rule of the notice that decided; `message` is
    what a refused client reads.
    """

    verdict: Literal["allowed", "refused"]
    language: Language
    at: str
    account_id: str
    standing: Standing | UnsetType = UNSET
    shop_id: str | UnsetType = UNSET
    shop_type: ShopType | UnsetType = UNSET
    cross_border: bool | UnsetType = UNSET
    product_id: str
    product_shop_id: str | UnsetType = UNSET
    own: bool | UnsetType = UNSET
    surface: Surface
    session_id: str | UnsetType = UNSET
    state: SessionState | UnsetType = UNSET
    policy_version: str | UnsetType = UNSET
    rule: str | UnsetType = UNSET
    notice: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    message: str | UnsetType = UNSET
    why: str
    cap: int | UnsetType = UNSET
    used: int | UnsetType = UNSET
    remaining: int | UnsetType = UNSET
    slots: tuple[SlotView, ...] | UnsetType = UNSET
    help: Sequence[Help] = ()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def explain(
    *,
    account: Account,
    product: Product,
    surface: Surface,
    verdict: Verdict,
    snapshot: Snapshot | None,
    language: Language,
    now: float,
) -> Explanation:
    """What an attach of the product would be answered at `now` (seconds since the epoch). `snapshot` is the
    session's, None where none was named; it matters in the live room only."""
    session = snapshot if surface is Surface.live_room else None
    shop = account.shop
    own = account.owns(product)
    known = Explanation(
        verdict="allowed",
        language=language,
        at=_time(now),
        account_id=account.account_id,
        standing=verdict.standing,
        shop_id=shop.shop_id if shop else UNSET,
        shop_type=shop.shop_type if shop else UNSET,
        cross_border=shop.cross_border if shop else UNSET,
        product_id=product.product_id,
        product_shop_id=product.shop_id,
        own=own,
        surface=surface,
        session_id=session.session_id if session else UNSET,
        state=session.state if session else UNSET,
        policy_version=verdict.policy_version,
        rule=verdict.rule,
        why="",
        cap=UNSET if verdict.cap is None else verdict.cap,
        used=session.used if session else UNSET,
        slots=session.slots if session else UNSET,
    )
    if session and session.state is SessionState.ended:
        ended = SessionEnded(f"Session {session.session_id} has ended: attach to the next one.")
        return _refused(known, refuse_error(ended, language=language, decision_id=None))
    if not own and (problem := _refusal(known, verdict, session, now)):
        return _refused(known, problem)
    return _allowed(known, verdict, session)


def explain_error(
    error: GatewayError,
    *,
    account_id: str,
    product_id: str,
    surface: Surface,
    session_id: str | None,
    language: Language,
    now: float,
) -> Explanation:
    """The answer where the rules were never asked: an unknown product, another account's session."""
    known = Explanation(
        verdict="refused",
        language=language,
        at=_time(now),
        account_id=account_id,
        product_id=product_id,
        surface=surface,
        session_id=UNSET if session_id is None else session_id,
        why="",
    )
    return _refused(known, refuse_error(error, language=language, decision_id=None))


def _refusal(known: Explanation, verdict: Verdict, session: Snapshot | None, now: float) -> Problem | None:
    """The problem document that a foreign product gets, None where it is allowed."""
    if verdict.cap is None:
        return None
    if verdict.cap and (
        session is None
        or session.used < verdict.cap
        or any(slot.product_id == known.product_id for slot in session.slots)
    ):
        return None
    reason = policy_reason(verdict)
    return refuse_policy(
        verdict=verdict,
        reason=reason,
        surface=known.surface,
        language=known.language,
        decision_id=None,
        now=now,
        products=[(known.product_id, False, reason)],
        session_id=session.session_id if session else None,
        state=session.state if session else None,
        used=session.used if session else None,
        slots=session.slots if session else (),
    )


def _refused(known: Explanation, problem: Problem) -> Explanation:
    advice = problem.help or []
    if problem.reason == "foreign_cap_reached":
        first = say("used", known.language, cap=problem.cap, used=problem.used)
    elif problem.reason == "foreign_not_allowed":
        first = advice[0]
    else:
        first = Help(problem.detail, advice[0].notice if advice else "")
    return msgspec.structs.replace(
        known,
        verdict="refused",
        notice=first.notice or UNSET,
        status=problem.status,
        reason=problem.reason,
        message=problem.detail,
        why=first.title,
        remaining=problem.remaining,
        help=advice,
    )


def _why_allowed(known: Explanation, verdict: Verdict, session: Snapshot | None) -> str:
    if known.own:
        return "own"
    if verdict.cap is None:
        if not verdict.reached:
            return "not_reached_live" if known.surface is Surface.live_room else "not_reached"
        if verdict.standing is not Standing.official:
            return verdict.standing.value
        return "cross_border" if verdict.rule == "N2" else "no_cap"
    if session is None:
        return "no_session"
    return "has_slot" if any(slot.product_id == known.product_id for slot in session.slots) else "free"


def _allowed(known: Explanation, verdict: Verdict, session: Snapshot | None) -> Explanation:
    key = _why_allowed(known, verdict, session)
    used = session.used if session else 0
    notice, why = allowed(key, known.language, cap=verdict.cap, next=used + 1)
    advice: list[Help] = []
    if key in ("free", "has_slot", "no_session"):
        step = "replaceable" if known.state is SessionState.preparing else "cumulative"
        advice = [say(step, known.language), say("next_session", known.language)]
    return msgspec.structs.replace(
        known,
        notice=notice or verdict.rule,
        why=why,
        remaining=max(verdict.cap - used, 0) if verdict.cap is not None and session else UNSET,
        help=advice,
    )


def to_json(explanation: Explanation) -> bytes:
    return msgspec.json.encode(explanation)
