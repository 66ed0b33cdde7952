"""THE PATH: one attach, from the request to its settled answer. Read it top to bottom.

    read      who asks, and what exactly (one reading: what is judged is what is forwarded)
    look up   whose session, whose products
    evaluate  what the policy says of foreign products here and now
    reserve   a slot for each, or for none
    forward   once, never again
    settle    commit, release, or in doubt; it outlives the client
    answer    the upstream's own words, or a refusal with its reason

What needs no slot never waits for the ledger: own products, creators, and what is refused outright go on while Redis
is down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import inf
from time import monotonic, perf_counter

from gateway.admission import facts, remaining
from gateway.admission.answers import refusal
from gateway.admission.decision import Decision, Incoming, Reply
from gateway.admission.facts import caller, check_path_account
from gateway.admission.forwarding import forward, upstream_reply
from gateway.admission.gate import Gate
from gateway.admission.outcome import Outcome, applied_products, of_error, of_status
from gateway.errors import DependencyError, GatewayError, LedgerUnavailable, SessionEnded
from gateway.ledger.steps import Answer, Step
from gateway.policy.model import Account
from gateway.upstream.pool import UpstreamAnswer

SETTLE_WAIT_SECONDS = 0.5


async def attach(gate: Gate, incoming: Incoming, decision: Decision) -> Reply:
    route, params = incoming.match.route, incoming.match.params
    account_id = decision.account_id = await caller(gate.identity, incoming)
    session_id = decision.session_id = params.get("session_id")
    check_path_account(params.get("account_id"), account_id)
    read = gate.bodies.read(route, await incoming.body(), incoming.headers)
    decision.asked = read.product_ids

    asked = (gate.directory, account_id, session_id, read.product_ids)
    known = facts.at_hand(*asked) or await facts.gather(*asked)
    account = known.account
    assert decision.surface is not None
    verdict = decision.verdict = gate.evaluate(account, decision.surface, decision.now)
    foreign = [product.product_id for product in known.products if not account.owns(product)]

    if foreign and verdict.cap == 0:
        decision.used = 0
        return refusal(gate, decision, "foreign_not_allowed", read.product_ids, foreign)
    if not foreign or not account.recorded or session_id is None:
        return await _without_slot(gate, incoming, decision, account, read.canonical)

    full = gate.full.refuses(session_id, verdict.cap, foreign) if verdict.cap is not None else None
    if full is not None:
        decision.used = full.used
        return refusal(gate, decision, "foreign_cap_reached", read.product_ids, foreign, full, told=False)
    try:
        reserved = await reserve(gate, session_id, account, decision, foreign)
    except DependencyError:
        if verdict.cap is not None:
            raise
        return await _unrecorded(gate, incoming, decision, account, read.canonical)
    decision.used = reserved.used
    if reserved.said == "full" and reserved.snapshot is not None:
        gate.full.learn(session_id, reserved.snapshot)
        return refusal(gate, decision, "foreign_cap_reached", read.product_ids, foreign, reserved.snapshot)

    gate.settlements.begin(session_id, decision.id, [Step("t", product_id) for product_id in foreign])
    answer: UpstreamAnswer | GatewayError | None = None
    try:
        answer = await forward(gate, incoming, decision, account_id, read.canonical)
    except GatewayError as error:
        answer = error
    finally:
        settled = _settle(gate, incoming, decision, session_id, foreign, read.product_ids, answer)
    if settled is not None:
        decision.used = await used_after(settled, decision.used)
    if isinstance(answer, GatewayError):
        raise answer
    return _allowed(gate, answer, decision)


async def reserve(gate: Gate, session_id: str, account: Account, decision: Decision, foreign: Sequence[str]) -> Answer:
    """`held` or `full`. A session that the ledger does not know is opened first. What a lost answer, or a request that
    is given up, may have left held is released, since nothing was forwarded."""
    began = perf_counter()
    try:
        decision.send_by = monotonic() + gate.send_within_seconds
        reserved = await gate.ledger.reserve(session_id, decision.id, decision.cap, foreign)
        if reserved.said == "missing":
            await gate.opening.open(session_id, account, decision.id)
            decision.send_by = monotonic() + gate.send_within_seconds
            reserved = await gate.ledger.reserve(session_id, decision.id, decision.cap, foreign)
    except BaseException:
        decision.send_by = inf
        gate.settlements.release(session_id, decision.id, len(foreign))
        raise
    finally:
        gate.telemetry.ledger_took("reserve", perf_counter() - began)
    if reserved.said == "ended":
        raise SessionEnded(f"Session {session_id} has ended: nothing can be attached to it any more.")
    if reserved.said == "missing":
        raise LedgerUnavailable(f"The ledger of session {session_id} vanished while it was asked.")
    return reserved


def _settle(
    gate: Gate,
    incoming: Incoming,
    decision: Decision,
    session_id: str,
    foreign: Sequence[str],
    asked: Sequence[str],
    answer: UpstreamAnswer | GatewayError | None,
) -> asyncio.Future[Answer | None] | None:
    """Start the settlement that the answer calls for; returned only where the count may be other than reserved.
    No answer at all: the request was abandoned at an unknown moment."""
    route = incoming.match.route
    applied: frozenset[str] | None = None
    if isinstance(answer, UpstreamAnswer):
        outcome = of_status("attach", answer.status, route.already_there)
        applied = applied_products(route, asked, answer) if outcome is Outcome.applied else None
    else:
        outcome = of_error(answer) if answer is not None else Outcome.in_doubt

    if outcome is Outcome.not_applied:
        return gate.settlements.release(session_id, decision.id, len(foreign))
    if applied is None:
        gate.settlements.doubt(session_id, decision.id, [Step("t", product_id) for product_id in foreign])
        return None
    steps = [Step("t", product_id, product_id in applied) for product_id in foreign]
    settled = gate.settlements.commit(session_id, decision.id, "attached", steps)
    return None if all(step.applied for step in steps) else settled


async def used_after(settled: asyncio.Future[Answer | None], used: int | None) -> int | None:
    """The count after a settlement; where it takes long, as it was before."""
    done, _ = await asyncio.wait({settled}, timeout=SETTLE_WAIT_SECONDS)
    if not done or settled.cancelled() or settled.exception() is not None:
        return used
    answer = settled.result()
    return answer.used if answer is not None else used


async def _without_slot(gate: Gate, incoming: Incoming, decision: Decision, account: Account, body: bytes) -> Reply:
    """No product needs a slot. The count for the headers is asked beside the upstream."""
    counting = remaining.ask(gate, decision)
    try:
        answer = await forward(gate, incoming, decision, account.account_id, body)
    except GatewayError:
        await remaining.take(gate, decision, account, counting)
        raise
    await remaining.take(gate, decision, account, counting)
    return _allowed(gate, answer, decision)


async def _unrecorded(gate: Gate, incoming: Incoming, decision: Decision, account: Account, body: bytes) -> Reply:
    """No cap holds, and the ledger is away or can't be given the session: the upstream's list is taken over later, and
    once more when the upstream can no longer apply what it did not answer."""
    assert decision.session_id is not None
    try:
        answer = await forward(gate, incoming, decision, account.account_id, body)
    finally:
        gate.takeovers.add(decision.session_id)
    return _allowed(gate, answer, decision)


def _allowed(gate: Gate, answer: UpstreamAnswer, decision: Decision) -> Reply:
    """The upstream's answer to what the policy let pass."""
    assert decision.verdict is not None
    gate.telemetry.decision(decision.surface, decision.verdict.rule, "allowed")
    gate.notes.allowed(decision, answer.status)
    return upstream_reply(answer, decision)
