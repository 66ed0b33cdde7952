"""The decision journal outside Redis: one JSON object a line, as `attachgate journal` writes it and a rebuild reads it.

Pure. `type` comes first and says what a line is:

    event      a ledger step (`event`: attached, refused, …, and `opened`, with what a ledger begins with)
    decision   the answer to one attach, with the account, the rule and the policy version that it was given by
    gap        entries that were lost before they could be written down: which, and why
    unknown    an entry of the stream that no gateway of this version wrote

`id` is the entry's in its bucket's stream; with `bucket` it is unique, and orders the lines of a session. A line may
be there twice, and after an exporter was killed some come late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

Verdict = Literal["allowed", "refused", "failed"]

EVENT_HEAD = b'{"type":"event"'
GAP_HEAD = b'{"type":"gap"'

DECISION, DROPPED, OPENED = "decision", "dropped", "opened"
JOURNAL_ONLY = frozenset((DECISION, DROPPED, OPENED))
"""The kinds of entries that are no events for a room's clients."""


class Decided(msgspec.Struct, frozen=True, array_like=True):
    """What one answer was given by; in the stream a list, since names would cost more than values. What is added goes
    to its end, with a default: a stream may hold what another version wrote.

    `refused` of the `products` were refused by the policy. `used` is None as long as the ledger was not asked, `cap`
    where none holds. `status`: the upstream's answer to what was allowed. `gateway`: host and process id."""

    at_ms: int
    account_id: str
    surface: str
    operation: str
    verdict: Verdict
    reason: str = ""
    rule: str = ""
    policy_version: str = ""
    used: int | None = None
    cap: int | None = None
    products: Sequence[str] = ()
    refused: Sequence[str] = ()
    status: int = 0
    gateway: str = ""


class EventLine(msgspec.Struct, frozen=True):
    """What a rebuild reads of an event's line. `kept`: of what left, or was not shown, what counts all the same."""

    id: str
    session_id: str
    event: str
    products: list[str] = []
    replaced: list[str] = []
    kept: list[str] = []


class GapLine(msgspec.Struct, frozen=True):
    bucket: int
    reason: str


_decided = msgspec.json.Decoder(Decided)
_dropped: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_LISTS = (("products", "p"), ("replaced", "x"), ("released", "r"), ("kept", "k"))
_COUNTS = (("used", "u"), ("cap", "c"))


def line_of(bucket: int, identifier: str, fields: Mapping[str, str]) -> bytes:
    """An entry of the stream as a line, with its end. Never fails: what can't be read is told as it is."""
    try:
        line = _line(bucket, identifier, fields)
    except (KeyError, ValueError, msgspec.DecodeError):
        line = {"type": "unknown", "id": identifier, "bucket": bucket, "fields": dict(fields)}
    return msgspec.json.encode(line) + b"\n"


def _line(bucket: int, identifier: str, fields: Mapping[str, str]) -> dict[str, Any]:
    kind = fields["e"]
    place = {"id": identifier, "bucket": bucket}
    if kind == DROPPED:
        said = _dropped.decode(fields["d"])
        about = {"at": _at(identifier), "reason": "dropped", "count": int(said["count"]), "gateway": said["gateway"]}
        return {"type": "gap"} | place | about
    if "d" in fields:
        decided = _decided.decode(fields["d"])
        line = {"type": "decision"} | place | {"at": rfc3339(decided.at_ms), "decision_id": fields["o"]}
        line |= {"session_id": fields["s"] or None} | msgspec.structs.asdict(decided)
        del line["at_ms"]
        return line | {"event": kind} if kind != DECISION else line
    line = {"type": "event"} | place | {"at": _at(identifier), "session_id": fields["s"], "event": kind}
    line["decision_id"] = fields["o"]
    line |= {name: fields[field].split() for name, field in _LISTS if field in fields}
    return line | {name: int(fields[field]) for name, field in _COUNTS if field in fields}


def gap_of(bucket: int, at_ms: int, reason: str, after: str, before: str, ids: Sequence[str] = ()) -> bytes:
    """A line that says what was lost: what came between two ids, or these ids. `reason`: `trimmed` (the stream was full
    before it was exported), `lost` (the stream is gone, or its group) or `rewound` (Redis went back in time)."""
    line: dict[str, Any] = {"type": "gap", "bucket": bucket, "at": rfc3339(at_ms), "reason": reason}
    line |= {"after": after, "before": before} if not ids else {"ids": list(ids)}
    return msgspec.json.encode(line) + b"\n"


def rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _at(identifier: str) -> str:
    return rfc3339(int(identifier.partition("-")[0]))
