"""What a live-room client may see of its own session: the count and its slots, and each ledger step as it happens.

`GET <prefix>sessions/{id}` and `GET <prefix>sessions/{id}/events` (SSE, resumed by `Last-Event-ID`). A client
that reads slowly holds up nobody: its writes wait for it, and the journal catches up from where it stood. One that
takes nothing at all for `STALL_SECONDS` is let go, and one that leaves is no longer followed from that moment on.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from typing import Any

import msgspec
from aiohttp import web

from gateway.admission.decision import Asking, Decision
from gateway.admission.facts import caller, check_owner
from gateway.admission.gate import Gate
from gateway.errors import AddressMalformed, LedgerUnavailable, MethodNotAllowed, RouteUnknown
from gateway.ledger.journal import Event, Gap, Journal
from gateway.ledger.lines import rfc3339
from gateway.ledger.steps import Snapshot
from gateway.policy.model import Account, Session, SessionState, Surface
from gateway.proxy.answer import Stream, Whole
from gateway.proxy.watch import Interrupted, Watch
from gateway.reading.spelling import id_check

HEARTBEAT_SECONDS = 15.0
STALL_SECONDS = 60.0
RETRY_MS = 1000

_FIELDS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_EVENT_ID = re.compile(r"[0-9]{1,15}(-[0-9]{1,10})?")


class SlotRow(msgspec.Struct, frozen=True):
    product_id: str
    since: str
    attached: bool
    in_doubt: bool


class View(msgspec.Struct, frozen=True):
    """A session's count as its account sees it. `cap` and `remaining` are None where no cap holds."""

    session_id: str
    account_id: str
    state: SessionState
    cap: int | None
    used: int
    remaining: int | None
    slots: list[SlotRow]
    policy_version: str


class LiveView:
    """The gateway's own routes on the public port."""

    def __init__(self, gate: Gate, journal: Journal, id_pattern: str) -> None:
        self._gate = gate
        self._journal = journal
        self._is_id = id_check(id_pattern)

    async def handle(
        self, request: web.BaseRequest, incoming: Asking, segments: list[str], decision: Decision
    ) -> web.StreamResponse:
        """`segments` are those behind the prefix. Returns a response that was, or can be, sent."""
        if len(segments) not in (2, 3) or segments[0] != "sessions" or segments[2:] not in ([], ["events"]):
            raise RouteUnknown("The gateway's own routes are sessions/{id} and sessions/{id}/events.")
        methods = ("GET", "HEAD") if len(segments) == 2 else ("GET",)
        if request.method not in methods:
            raise MethodNotAllowed("A session's view can only be read: GET.", ", ".join(methods))
        account_id = await caller(self._gate.identity, incoming)
        session_id = decision.session_id = segments[1]
        if not self._is_id(session_id):
            raise AddressMalformed("The session id in the address is none.")
        session = await self._gate.directory.session(session_id)
        check_owner(session, account_id)
        if len(segments) == 3:
            return await self._events(request, session_id)
        account = await self._gate.directory.account(account_id)
        view = await self._view(session, account, decision)
        return Whole(
            body=msgspec.json.encode(view),
            content_type="application/json",
            headers={**_FIELDS, "Attachgate-Decision": decision.id},
        )

    async def _view(self, session: Session, account: Account, decision: Decision) -> View:
        verdict = self._gate.evaluate(account, Surface.live_room, decision.now)
        snapshot: Snapshot | None = None
        if account.recorded:
            snapshot = await self._gate.ledger.snapshot(session.session_id)
            if snapshot is None:
                await self._gate.opening.open(session.session_id, account, decision.id)
                snapshot = await self._gate.ledger.snapshot(session.session_id)
        slots = snapshot.slots if snapshot is not None else ()
        used = snapshot.used if snapshot is not None else 0
        return View(
            session_id=session.session_id,
            account_id=session.account_id,
            state=later(session.state, snapshot.state if snapshot is not None else session.state),
            cap=verdict.cap,
            used=used,
            remaining=None if verdict.cap is None else max(0, verdict.cap - used),
            slots=[SlotRow(s.product_id, rfc3339(s.since_ms), s.attached, s.in_doubt) for s in slots],
            policy_version=verdict.policy_version,
        )

    async def _events(self, request: web.BaseRequest, session_id: str) -> web.StreamResponse:
        after = request.headers.get("Last-Event-ID", "").strip()
        if after and not _EVENT_ID.fullmatch(after):
            raise AddressMalformed("Last-Event-ID is none of this stream's ids.")
        first = b""
        if after:
            try:
                await self._journal.check(session_id, after)
            except Gap as found:
                after, first = found.newest, _GAP % found.newest.encode()
        else:
            after = await self._journal.newest(session_id)
            # Where it stands now, so that who breaks off before the first event misses none either.
            first = b"id: %s\n\n" % after.encode()
        response = Stream(headers={**_FIELDS, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        await response.prepare(request)
        try:
            # Whoever has left is told of nothing any more: waiting for the next event would not notice it.
            async with Watch(request.transport):
                await _write(response, b"retry: %d\n" % RETRY_MS + (first or b"\n"))
                try:
                    async with aclosing(self._journal.follow(session_id, after, HEARTBEAT_SECONDS)) as events:
                        async for event in events:
                            await _write(response, b": heartbeat\n\n" if event is None else encode_event(event))
                except LedgerUnavailable:
                    # The client comes back with the last id it saw.
                    await _write(response, b": the ledger is away\n\n")
        except TimeoutError:
            self._gate.telemetry.error("client_slow")
            if request.transport is not None:
                request.transport.abort()
        except (Interrupted, ConnectionError, asyncio.CancelledError):
            pass
        return response


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Raises `TimeoutError` where the client takes nothing for `STALL_SECONDS`."""
    async with asyncio.timeout(STALL_SECONDS):
        await response.write(data)


_GAP = b'id: %s\nevent: gap\ndata: {"detail":"Events were lost: read the session anew."}\n\n'

_ORDER = (SessionState.preparing, SessionState.live, SessionState.ended)


def later(one: SessionState, other: SessionState) -> SessionState:
    """A session only goes forward."""
    return max(one, other, key=_ORDER.index)


def encode_event(event: Event) -> bytes:
    """One event of the stream (contract: ids resume, one event a ledger step)."""
    data: dict[str, Any] = {
        "session_id": event.session_id,
        "event": event.kind,
        "at": rfc3339(event.at_ms),
        "decision_id": event.operation,
        "products": event.products(),
    }
    if event.kind == "settled":
        data["released"] = event.products("r")
    if event.kind == "replaced":
        data["replaced"] = event.products("x")
    for name, field in (("used", "u"), ("cap", "c")):
        if field in event.fields:
            data[name] = int(event.fields[field])
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event.id.encode(), event.kind.encode(), msgspec.json.encode(data))
