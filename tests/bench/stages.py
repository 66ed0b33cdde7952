"""Where the gateway's time goes, by stage of an attach: py-spy's folded stacks, counted. Pure.

A sample belongs to the stage that its innermost frame with a stage names; so what a stage calls counts for it, unless
that is a stage of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

STAGES: Final[dict[str, str]] = {
    "metrics": r"gateway/telemetry/|prometheus_client/",
    "logs": r"structlog/",
    "read the request": r"FastLane\.recognise |gateway/reading/(address|headers|routes)\.py",
    "read the body": r"gateway/reading/(body|document|pointers)\.py",
    "who asks": r"^caller |gateway/identity/|gateway/proxy/limits\.py",
    "directory (memory)": r"^(at_hand|gather|_checked) |gateway/directory\.py|gateway/fetch\.py",
    "policy": r"Gate\.evaluate |gateway/policy/",
    "Redis (a turn's calls in one write)": r"gateway/ledger/(lane|wire|exchange|call)\.py|redis/asyncio/|hiredis",
    "reserve": r"Ledger\.reserve |^reserve ",
    "settle": r"^_settle |gateway/admission/settle\.py|OnTheirWay",
    "refuse (problem document)": r"^refusal |gateway/refusals/|gateway/admission/answers\.py",
    "pass through (aiohttp's client and answers)": r"gateway/proxy/(forward|answer)\.py|aiohttp/(client|connector)",
    "forward (own connections)": r"gateway/upstream/|gateway/admission/forwarding\.py",
    "answer (headers, bytes)": r"^encode .*fast\.py|Decision\.|gateway/admission/decision\.py|^upstream_reply ",
    "what is left of attach": r"^attach ",
    "dispatch": r"Dispatcher\.|FastLane\.answer ",
    "read the socket, start the request": r"\.data_received |Listener\._?(turn|serve|begin)|gateway/proxy/turns\.py",
    "write to the client": r"Connection\.serve ",
    "tasks": r"gateway/tasks\.py",
    "reconciler": r"gateway/reconciler/",
    "other ledger calls": r"gateway/ledger/",
    "collector": r"gc_collect_main",
    "event loop (epoll, read, timers, steps of tasks)": r"",
}
_PATTERNS: Final = {stage: re.compile(pattern) for stage, pattern in STAGES.items()}
_LINE: Final = re.compile(r":\d+\)$")
_REST: Final = list(STAGES)[-1]
_SHARED: Final = "other ledger calls"
"""What several stages call: counted for the one that did."""


def stage_of(frames: Sequence[str]) -> str:
    """`frames` from the outermost to the innermost."""
    names = [_LINE.sub(")", frame) for frame in reversed(frames)]
    for name in names:
        for stage, pattern in _PATTERNS.items():
            if stage != _REST and pattern.search(name):
                if stage != _SHARED:
                    return stage
                callers = (
                    caller
                    for caller in ("reserve", "settle", "reconciler")
                    if any(map(_PATTERNS[caller].search, names))
                )
                return next(callers, stage)
    return _REST


def shares(folded: str) -> dict[str, float]:
    """Each stage's share of all samples, in the table's order."""
    counts: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[stage_of(stack.split(";"))] += int(count)
    total = sum(counts.values()) or 1
    return {stage: counts[stage] / total for stage in STAGES}


def table(found: dict[str, float], us_per_request: float) -> str:
    """As text; µs are the whole CPU time of a request, shared out."""
    lines = [f"{us_per_request:7.1f} µs a request"]
    lines += [f"{us_per_request * share:7.1f} µs {share:6.1%}  {stage}" for stage, share in found.items() if share > 0]
    return "\n".join(lines)
