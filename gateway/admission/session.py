"""The other steps of a session's life, in the shape of `attach`: create, detach, replace, start, end.

Each is owned like an attach, forwarded once, and settled by what the upstream answers. Only a replace can need a slot;
the others are recorded so that slots come back, or stop coming back, at the right moment (N5, N6). Where the ledger is
away and no count hangs on it they go on, and the session is compared with the upstream's list afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from time import monotonic

import msgspec

from gateway import fetch
from gateway.admission.answers import refusal
from gateway.admission.attach import used_after
from gateway.admission.decision import Decision, Incoming, Reply
from gateway.admission.facts import caller, check_owner, check_path_account
from gateway.admission.forwarding import forward, upstream_reply
from gateway.admission.gate import Gate
from gateway.admission.outcome import Outcome, of_error, of_status
from gateway.errors import (
    BodyMalformed,
    DependencyError,
    GatewayError,
    LedgerUnavailable,
    SessionEnded,
    SessionUnsettled,
)
from gateway.ledger.steps import Answer, Step
from gateway.policy.model import Account, Session, SessionState, Surface
from gateway.upstream.pool import UpstreamAnswer

START_WAIT_SECONDS = 3.0
START_ASK_AGAIN_SECONDS = 0.1

_session_decoder = msgspec.json.Decoder(Session)


async def create(gate: Gate, incoming: Incoming, decision: Decision) -> Reply:
    """A session for the caller's own account. The ledger opens it from the upstream's list, as any session that it
    does not know: so an id that comes again never brings a fresh count."""
    account_id = await caller(gate.identity, incoming)
    read = gate.bodies.read(incoming.match.route, await incoming.body(), incoming.headers)
    in_path, in_body = incoming.match.params.get("account_id"), read.members.get("account_id")
    if in_path is None and in_body is None:
        raise BodyMalformed("/account_id is missing: the account that goes live.")
    for named in (in_path, in_body):
        check_path_account(named, account_id)
    account = await gate.directory.account(account_id)
    answer = await forward(gate, incoming, decision, account_id, read.canonical)
    if 200 <= answer.status < 300:
        session = fetch.decode(_session_decoder, answer.body)
        if isinstance(session, fetch.Failure) or not gate.is_id(session.session_id):
            return upstream_reply(answer, decision)
        decision.session_id = session.session_id
        gate.directory.learn_session(session)
        if account.recorded and session.account_id == account_id:
            gate.settlements.open(gate.opening.open(session.session_id, account, decision.id), decision.id)
    return upstream_reply(answer, decision)


async def detach(gate: Gate, incoming: Incoming, decision: Decision) -> Reply:
    """Before the start the slot comes back, if nothing touched the product since the detach was asked and a look at
    the session after the answer still says preparing; live, it stays used (N5). So where a cap holds, no foreign
    product leaves without a record: nobody could tell later that it had been there."""
    account, session_id = await _caller_and_session(gate, incoming, decision)
    read = gate.bodies.read(incoming.match.route, await incoming.body(), incoming.headers)
    product_id = incoming.match.params.get("product_id") or read.product_ids[0]
    body = read.canonical or None
    if not account.recorded:
        return upstream_reply(await forward(gate, incoming, decision, account.account_id, body), decision)
    look = recorded = True
    try:
        with _released_on_failure(gate, decision, 1):
            asked = await gate.ledger.detach(session_id, decision.id, product_id)
            if asked.said == "missing":
                await gate.opening.open(session_id, account, decision.id)
                asked = await gate.ledger.detach(session_id, decision.id, product_id)
        look = asked.said in ("asked", "missing")
        decision.used = asked.used
    except DependencyError:
        cap = gate.evaluate(account, Surface.live_room, decision.now).cap
        if cap and await _is_foreign(gate, account, product_id):
            raise
        recorded = False
    steps = [Step("g", product_id)]
    return await _forward_and_settle(
        gate, incoming, decision, account, body, steps, "detached", look=look, recorded=recorded
    )


async def replace(gate: Gate, incoming: Incoming, decision: Decision) -> Reply:
    """Before the start one slot passes from the old product to the new; once live, a new foreign product would need
    one of its own, and is refused (N6)."""
    account, session_id = await _caller_and_session(gate, incoming, decision)
    read = gate.bodies.read(incoming.match.route, await incoming.body(), incoming.headers)
    old, (new,) = incoming.match.params["product_id"], read.product_ids
    if not account.recorded:
        return upstream_reply(await forward(gate, incoming, decision, account.account_id, read.canonical), decision)
    product = await gate.directory.product(new)
    decision.surface = Surface.live_room
    verdict = decision.verdict = gate.evaluate(account, Surface.live_room, decision.now)
    foreign = not account.owns(product)
    if foreign and verdict.cap == 0:
        decision.used = 0
        decision.account_id, decision.asked = account.account_id, (new,)
        return refusal(gate, decision, "foreign_not_allowed", [new], [new])

    seen = (await gate.directory.fresh_session(session_id)).state
    steps = [Step("g", old), Step("t", new)] if foreign else [Step("g", old)]
    try:
        with _released_on_failure(gate, decision, len(steps)):
            said = await _ask_replace(gate, decision, account, verdict.cap, seen, old, new, foreign=foreign)
    except DependencyError:
        if verdict.cap and (foreign or await _is_foreign(gate, account, old)):
            raise
        return await _forward_and_settle(
            gate, incoming, decision, account, read.canonical, steps, "replaced", recorded=False
        )
    if said.said == "ended":
        raise SessionEnded(f"Session {session_id} has ended: nothing can be replaced in it any more.")
    decision.used = said.used
    if said.said in ("full", "started"):
        decision.account_id, decision.asked = account.account_id, (new,)
        reason = "foreign_cap_reached" if said.said == "full" else "replace_after_start"
        return refusal(gate, decision, reason, [new], [new], said.snapshot)  # type: ignore[arg-type]
    return await _forward_and_settle(
        gate,
        incoming,
        decision,
        account,
        read.canonical,
        steps,
        "replaced",
        look=seen is SessionState.preparing,
    )


async def _ask_replace(
    gate: Gate,
    decision: Decision,
    account: Account,
    cap: int | None,
    seen: SessionState,
    old: str,
    new: str,
    *,
    foreign: bool,
) -> Answer:
    session_id = decision.session_id
    assert session_id is not None
    for _ in range(2):
        decision.send_by = monotonic() + gate.send_within_seconds
        said = await gate.ledger.replace(session_id, decision.id, cap, seen, old, new, foreign=foreign)
        if said.said != "missing":
            return said
        await gate.opening.open(session_id, account, decision.id)
    raise LedgerUnavailable(f"The ledger of session {session_id} vanished while it was asked.")


async def start(gate: Gate, incoming: Incoming, decision: Decision) -> Reply:
    """From the moment it is asked the session counts as live. A replace whose outcome is unknown holds it up, since
    the old product would count and the new one might still come (N6). Where a cap holds and the ledger can't be asked
    whether there is one, the session does not start."""
    account, session_id = await _caller_and_session(gate, incoming, decision)
    body = gate.bodies.read(incoming.match.route, await incoming.body(), incoming.headers).canonical or None
    steps: list[Step] = []
    recorded = True
    if account.recorded:
        cap = gate.evaluate(account, Surface.live_room, decision.now).cap
        try:
            with _released_on_failure(gate, decision, 1):
                asked = await _ask_start(gate, account, decision, cap)
            steps = [Step("s")] if asked.said == "asked" else []
        except DependencyError as error:
            if cap or isinstance(error, SessionUnsettled):
                raise
            recorded = False
    reply = await _forward_and_settle(gate, incoming, decision, account, body, steps, "started", recorded=recorded)
    _learn(gate, session_id, account, reply, SessionState.live)
    return reply


async def _ask_start(gate: Gate, account: Account, decision: Decision, cap: int | None) -> Answer:
    """What is in doubt is looked at first, and what is leaving is waited for, since a product that has left already
    would count once the session is live."""
    session_id = decision.session_id
    assert session_id is not None
    loop = asyncio.get_running_loop()
    until = loop.time() + START_WAIT_SECONDS
    while True:
        patient = loop.time() < until
        if await gate.reconciler.look_early(session_id) and patient:
            await asyncio.sleep(START_ASK_AGAIN_SECONDS)
            continue
        decision.send_by = monotonic() + gate.send_within_seconds
        asked = await gate.ledger.start(session_id, decision.id, cap)
        if asked.said == "missing":
            await gate.opening.open(session_id, account, decision.id)
        elif asked.said == "unsettled":
            await asyncio.sleep(START_ASK_AGAIN_SECONDS)
        else:
            return asked
        if not patient:
            raise SessionUnsettled(
                f"A replace in session {session_id} has an unknown outcome; the start is safe once it is settled."
            )


async def end(gate: Gate, incoming: Incoming, decision: Decision) -> Reply:
    account, session_id = await _caller_and_session(gate, incoming, decision)
    body = gate.bodies.read(incoming.match.route, await incoming.body(), incoming.headers).canonical or None
    answer = await forward(gate, incoming, decision, account.account_id, body)
    reply = upstream_reply(answer, decision)
    if of_status("end", answer.status) is Outcome.applied and account.recorded:
        gate.settlements.end(session_id, decision.id)
        gate.full.forget(session_id)
    _learn(gate, session_id, account, reply, SessionState.ended)
    return reply


async def _is_foreign(gate: Gate, account: Account, product_id: str) -> bool:
    """Where the directory can't tell, it may be."""
    try:
        return not account.owns(await gate.directory.product(product_id))
    except GatewayError:
        return True


async def _caller_and_session(gate: Gate, incoming: Incoming, decision: Decision) -> tuple[Account, str]:
    account_id = await caller(gate.identity, incoming)
    check_path_account(incoming.match.params.get("account_id"), account_id)
    session_id = decision.session_id = incoming.match.params["session_id"]
    session = gate.directory.peek_session(session_id) or await gate.directory.session(session_id)
    check_owner(session, account_id)
    account = gate.directory.peek_account(account_id) or await gate.directory.account(account_id)
    return account, session_id


async def _forward_and_settle(
    gate: Gate,
    incoming: Incoming,
    decision: Decision,
    account: Account,
    body: bytes | None,
    steps: Sequence[Step],
    event: str,
    *,
    look: bool = False,
    recorded: bool = True,
) -> Reply:
    """Forward once and settle what was recorded. `look`: a slot may come back, so the session is seen afresh after
    the answer. `recorded`: whether the ledger has the steps; where it was away, the session is compared later."""
    session_id = decision.session_id
    assert session_id is not None

    async def fresh_state() -> SessionState | None:
        try:
            return (await gate.directory.fresh_session(session_id)).state
        except GatewayError:
            return None

    outcome = Outcome.in_doubt
    answer: UpstreamAnswer | None = None
    failed: GatewayError | None = None
    settled: asyncio.Future[Answer | None] | None = None
    if steps and recorded:
        gate.settlements.begin(session_id, decision.id, steps)
    try:
        answer = await forward(gate, incoming, decision, account.account_id, body)
        outcome = of_status(incoming.match.route.operation, answer.status, slot_may_return=look)
    except GatewayError as error:
        failed, outcome = error, of_error(error)
    finally:
        if not recorded:
            if outcome is not Outcome.not_applied:
                gave = next((step.product_id for step in steps if step.kind == "g"), None)
                gate.takeovers.add(session_id, decision.id, gave)
        elif steps and outcome is Outcome.applied:
            settled = gate.settlements.commit(session_id, decision.id, event, steps, fresh_state if look else None)
        elif steps and outcome is Outcome.absent:
            absent = [Step(step.kind, step.product_id, applied=False) for step in steps]
            settled = gate.settlements.commit(session_id, decision.id, event, absent)
        elif steps and outcome is Outcome.not_applied:
            settled = gate.settlements.release(session_id, decision.id, len(steps))
        elif steps:
            gate.settlements.doubt(session_id, decision.id, steps)
    if failed is not None:
        raise failed
    assert answer is not None
    if settled is not None:
        decision.used = await used_after(settled, decision.used)
    return upstream_reply(answer, decision)


@contextmanager
def _released_on_failure(gate: Gate, decision: Decision, records: int) -> Iterator[None]:
    """What a lost answer, or a request that is given up, may have left in the ledger goes: nothing was forwarded."""
    assert decision.session_id is not None
    try:
        yield
    except BaseException:
        decision.send_by = inf
        gate.settlements.release(decision.session_id, decision.id, records)
        raise


def _learn(gate: Gate, session_id: str, account: Account, reply: Reply, state: SessionState) -> None:
    """What the upstream confirmed need not be asked for; what it did not is asked anew."""
    if 200 <= reply.status < 300:
        gate.directory.learn_session(Session(session_id, account.account_id, state))
    else:
        gate.directory.forget_session(session_id)
