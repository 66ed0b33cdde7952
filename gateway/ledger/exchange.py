"""A pipeline: the bytes of its calls, and which call each answer belongs to. No I/O.

Around the calls themselves lies what only one connection can say: ASKING before a call whose slot is on its way to a
server, and one WAIT behind all when any of them must be replicated.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from redis.exceptions import ResponseError

from gateway.errors import LedgerUnavailable
from gateway.ledger.call import Call, packed
from gateway.ledger.replies import Meaning, meaning_of, refused

NotRun = list[tuple[Call, ResponseError, Meaning]]

_ASKING = packed(("ASKING",))


class _Bare(Enum):
    """What is asked for the sake of the calls beside it."""

    asking = "ASKING"
    wait = "WAIT"


class Exchange:
    """`wait`: the WAIT that a pipeline with replicated calls ends with. `not_run`: calls that the server refused in a
    way that `replies` knows. `confirmed_by`: what WAIT was answered, None where there was none."""

    __slots__ = ("_at", "_cluster", "_written", "asked", "batch", "confirmed_by", "not_run", "pipeline")

    def __init__(self, batch: list[Call], wait: bytes, *, cluster: bool) -> None:
        self.batch = batch
        self.not_run: NotRun = []
        self.confirmed_by: int | ResponseError | None = None
        self._written: list[tuple[Call, Any]] = []
        self._cluster = cluster
        self._at = 0
        asked: list[Call | _Bare] = []
        pieces: list[bytes] = []
        replicated = False
        for call in batch:
            if call.asking:
                call.asking = False
                asked.append(_Bare.asking)
                pieces.append(_ASKING)
            asked.append(call)
            pieces.append(call.pack())
            call.sends += 1
            replicated = replicated or call.replicated
        if replicated:
            asked.append(_Bare.wait)
            pieces.append(wait)
        self.asked = asked
        self.pipeline = b"".join(pieces)

    def hear(self, answers: list[Any]) -> bool:
        """Hand answers over; whether all are in now. Raises an error that says something of the whole connection."""
        asked, at = self.asked, self._at
        for answer in answers:
            call = asked[at]
            at += 1
            if isinstance(call, Call) and not call.replicated and not isinstance(answer, Exception):
                call.settle(answer)
            else:
                self._odd(call, answer)
        self._at = at
        return at == len(asked)

    def _odd(self, call: Call | _Bare, answer: Any) -> None:
        if isinstance(answer, Exception) and (call is _Bare.asking or not isinstance(answer, ResponseError)):
            raise answer
        if call is _Bare.wait:
            self.confirmed_by = answer
        elif isinstance(call, Call) and isinstance(answer, ResponseError):
            meaning = meaning_of(answer, cluster=self._cluster)
            if meaning is None:
                call.fail(refused(answer, None))
            else:
                self.not_run.append((call, answer, meaning))
        elif isinstance(call, Call):
            self._written.append((call, answer))

    def confirm(self, needed: int) -> bool:
        """How many replicas have everything that this connection wrote before its WAIT is known now: whether enough
        do. A server that stopped being a master meanwhile says that as an error."""
        confirmed = isinstance(self.confirmed_by, int) and self.confirmed_by >= needed
        for call, answer in self._written:
            call.settle((answer, confirmed))
        return confirmed

    def fail(self, error: LedgerUnavailable) -> None:
        """For all that have no answer and were not refused."""
        refused_calls = {call for call, _, _ in self.not_run}
        for call in self.batch:
            if call not in refused_calls:
                call.fail(error)
