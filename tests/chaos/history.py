"""One session's whole history, in the order of time: what clients asked and were told, what the platform applied, what
the ledger recorded, what the gateways logged, and which faults were on. For whoever must find out why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from gateway.load.judge import Entry
from tests.chaos.check import Event
from tests.chaos.drive import Record, Request
from tests.chaos.plan import Fault
from tests.chaos.processes import GatewayProcess

MAX_LINES = 600


def of(
    session_id: str,
    entries: Iterable[Entry],
    events: Iterable[Event],
    record: Record,
    faults: Iterable[tuple[float, Fault]],
    gateways: Sequence[GatewayProcess],
) -> str:
    requests = record.by_session.get(session_id, [])
    lines: list[tuple[float, str]] = []
    for request in requests:
        lines += _request_lines(request)
    for entry in entries:
        if entry.session_id == session_id:
            replaced = f" in place of {entry.replaced}" if entry.replaced else ""
            product = f" {entry.product_id}" if entry.product_id else ""
            lines.append((_seconds(entry.at), f"PLATFORM   {entry.operation}{product}{replaced} (#{entry.seq})"))
    for at, fields in events:
        if fields.get("s") == session_id:
            rest = " ".join(f"{key}={value}" for key, value in fields.items() if key != "s")
            lines.append((at, f"LEDGER     {rest}"))
    words = {session_id} | {request.decision for request in requests if request.decision}
    for gateway in gateways:
        for line in gateway.log_lines(words):
            lines.append((_seconds(json.loads(line)["timestamp"]), f"LOG        {gateway.name}: {line}"))
    if lines:
        first, last = min(lines)[0] - 3, max(lines)[0] + 1
        for at, fault in faults:
            if first <= at <= last:
                what = f"{fault.kind} {fault.target} {fault.detail} for {fault.seconds:g} s ({fault.amount:g})"
                lines.append((at, f"FAULT      {what}"))
    lines.sort(key=lambda line: line[0])
    shown = [f"{_clock(at)} {text}" for at, text in lines[:MAX_LINES]]
    return "\n".join((f"Session {session_id}", *shown))


def _request_lines(request: Request) -> list[tuple[float, str]]:
    step = request.step
    what = " ".join((step.operation, *step.products, *(("out:", step.leaving) if step.leaving else ())))
    who = f"client {step.client} at {request.target}, try {request.tried}"
    answer = f"{request.status} {request.reason} {request.decision}".strip()
    sent = (request.sent, f"asked      {what} ({who}) -> {answer}")
    if request.answered == 0:
        return [sent]
    return [sent, (request.answered, f"answered   {what} ({who}) <- {answer}")]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]
