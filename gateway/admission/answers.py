"""Refusals and failures as replies, counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from gateway import refusals
from gateway.admission.decision import Decision, Reply
from gateway.admission.gate import Gate
from gateway.errors import GatewayError, MethodNotAllowed
from gateway.ledger.lines import rfc3339
from gateway.ledger.steps import Slot, Snapshot
from gateway.refusals import PolicyReason, SlotView


def slot_views(slots: Iterable[Slot]) -> tuple[SlotView, ...]:
    return tuple([_slot_view(slot.product_id, slot.since_ms, slot.attached) for slot in slots])


@lru_cache(maxsize=65_536)
def _slot_view(product_id: str, since_ms: int, attached: bool) -> SlotView:
    """A full session is refused over and over with the same slots."""
    return SlotView(product_id, rfc3339(since_ms), attached)


def refusal(
    gate: Gate,
    decision: Decision,
    reason: PolicyReason,
    asked: Sequence[str],
    foreign: Sequence[str],
    snapshot: Snapshot | None = None,
    *,
    told: bool = True,
) -> Reply:
    """403 by the policy. Of the products asked for, foreign ones without a slot are refused. `told`: the `snapshot`
    came with a ledger step, which has told the room's clients."""
    assert decision.verdict is not None
    assert decision.surface is not None
    slots = snapshot.slots if snapshot is not None else ()
    has_slot = [slot.product_id for slot in slots]
    refused = [product_id for product_id in asked if product_id in foreign and product_id not in has_slot]
    body = refusals.refusal_body(
        decision.verdict,
        reason,
        decision.surface,
        decision.language,
        decision.id,
        decision.now,
        [(product_id, False, reason) if product_id in refused else (product_id, True, None) for product_id in asked],
        decision.session_id,
        snapshot.state if snapshot is not None else None,
        decision.used,
        slot_views(slots),
    )
    gate.telemetry.refused(decision.surface, refusals.refused_by(decision.verdict, reason), reason)
    gate.notes.refused(decision, reason, refused, told=told and snapshot is not None)
    return Reply(403, [decision.header()], body, alike=decision.lines(refusals.headers(decision.language)))


def failure(gate: Gate, decision: Decision, error: GatewayError) -> Reply:
    """What the gateway answers itself where a request failed."""
    problem = refusals.refuse_error(
        error,
        language=decision.language,
        decision_id=decision.id,
        session_id=decision.session_id,
        surface=decision.surface,
    )
    gate.telemetry.failed(error, decision.id, decision.session_id, decision.client)
    gate.notes.failed(decision, error)
    status, headers, body = refusals.answer(problem, decision.language, error.retry_after_seconds)
    found = [decision.header()]
    if status == 401:
        found.append((b"WWW-Authenticate", gate.identity.challenge))
    if isinstance(error, MethodNotAllowed):
        found.append((b"Allow", error.allow.encode()))
    return Reply(status, found, body, alike=decision.lines(headers))
