"""Refusals and failures as replies, counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from gateway import refusals
from gateway.admission.decision import Decision, Reply, encoded
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
    foreign: set[str],
    snapshot: Snapshot | None = None,
    *,
    told: bool = True,
) -> Reply:
    """403 by the policy. Of the products asked for, foreign ones without a slot are refused. `told`: the `snapshot`
    came with a ledger step, which has told the room's clients."""
    assert decision.verdict is not None
    assert decision.surface is not None
    has_slot = {slot.product_id for slot in snapshot.slots} if snapshot is not None else set()
    products = []
    for product_id in asked:
        allowed = product_id not in foreign or product_id in has_slot
        products.append((product_id, allowed, None if allowed else reason))
    problem = refusals.refuse_policy(
        verdict=decision.verdict,
        reason=reason,
        surface=decision.surface,
        language=decision.language,
        decision_id=decision.id,
        now=decision.now,
        products=products,
        session_id=decision.session_id,
        state=snapshot.state if snapshot is not None else None,
        used=decision.used,
        slots=slot_views(snapshot.slots) if snapshot is not None else (),
    )
    gate.telemetry.refused(decision.surface, problem.rule or decision.verdict.rule, reason)
    refused = [product_id for product_id, allowed, _ in products if not allowed]
    gate.notes.refused(decision, reason, refused, told=told and snapshot is not None)
    status, headers, body = refusals.answer(problem, decision.language)
    return Reply(status, encoded(headers) + decision.headers(), body)


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
    found = encoded(headers) + decision.headers()
    if status == 401:
        found.append((b"WWW-Authenticate", gate.identity.challenge))
    if isinstance(error, MethodNotAllowed):
        found.append((b"Allow", error.allow.encode()))
    return Reply(status, found, body)
