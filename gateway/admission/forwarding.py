"""Sending on what was understood, and handing back what the upstream said."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

from gateway.admission.decision import Decision, Header, Incoming, Reply
from gateway.admission.gate import Gate
from gateway.upstream.pool import UpstreamAnswer

_CHOOSES_THE_ANSWER = frozenset(
    (
        *(b"accept-encoding", b"range", b"if-range", b"prefer", b"idempotency-key", b"x-idempotency-key"),
        *(b"if-none-match", b"if-match", b"if-modified-since", b"if-unmodified-since"),
        *(b"dry-run", b"x-dry-run", b"validate-only", b"x-validate-only"),
    )
)
"""With these a client could have an answer that can't be read, is only a part, or is not true: where conditions and
ranges are looked at behind the work, a product that was attached is answered 412 or 416; and a detach that is only
tried out, put off, or answered again as before by its key, is answered 2xx while the product stays."""
_GIVES_BACK = frozenset(("detach", "replace"))
"""Whose 2xx frees a slot: no query goes with them, which could say `dry_run`."""
_JSON: Header = (b"Content-Type", b"application/json")


def forwarded_lines(fields: Iterable[Header]) -> bytes:
    """Of these header fields, those that go on with a matched request, as they are sent."""
    return b"".join([b"%b: %b\r\n" % field for field in fields if field[0].lower() not in _CHOOSES_THE_ANSWER])


async def forward(
    gate: Gate,
    incoming: Incoming,
    decision: Decision,
    account_id: str,
    body: bytes | None,
) -> UpstreamAnswer:
    """Send a matched request on, once, in the gateway's own words: canonical path and body, and who asks set last.

    The answer is new, unconditional and not compressed, since what it says was applied must be readable and true. To
    an attach, one that is not small comes in pieces. Raises as `Pool.request` does.
    """
    headers: list[Header] = []
    if body is not None:
        headers.append(_JSON)
    headers.append((b"Attachgate-Decision", decision.id.encode()))
    identity = gate.identity.forwarded_header(account_id)
    if identity is not None:
        headers.append(identity)
    target = incoming.match.path if decision.operation in _GIVES_BACK else incoming.target
    began = perf_counter()
    try:
        return await gate.pool.request(
            incoming.method,
            target,
            headers,
            body,
            lines=incoming.forwarded_lines(),
            route=incoming.match.name,
            send_by=decision.send_by,
            streams=decision.operation == "attach",
        )
    finally:
        gate.telemetry.upstream_took(decision.operation, perf_counter() - began)


def upstream_reply(answer: UpstreamAnswer, decision: Decision) -> Reply:
    """The upstream's answer as the client gets it: unchanged but for the headers that we add."""
    headers = [*answer.headers, decision.header()]
    return Reply(answer.status, headers, answer.body, answer.phrase, decision.lines(), answer.rest)
