"""What is known of one request while it is decided, and what its answer is made of. Pure.

A `Decision` is filled in on the way; whoever answers, with a refusal, an error or the upstream's own words, takes the
headers from it (contract: every answer on an attach route).
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Protocol

from msgspec import Struct

from gateway.config import Operation
from gateway.policy.model import Surface, Verdict
from gateway.reading.headers import Headers
from gateway.reading.routes import Match
from gateway.refusals import HeaderList, Language, rate_limit_headers
from gateway.upstream.rest import Rest

Header = tuple[bytes, bytes]

_process = secrets.token_hex(5)
_numbers = itertools.count(1)


def next_decision_id() -> str:
    """Unique among gateways and restarts, short, and the operation's id in the ledger."""
    return f"{_process}{next(_numbers):x}"


def encoded(headers: HeaderList) -> list[Header]:
    return [(name.encode(), value.encode()) for name, value in headers]


class Asking(Protocol):
    """Where a request comes from, and its header fields: what says who asks."""

    @property
    def peer_ip(self) -> str: ...
    @property
    def headers(self) -> Headers: ...


class Incoming(Asking, Protocol):
    """One request as the proxy received it; nothing of it has been believed yet. `target` is the canonical path with
    the query as it came."""

    method: str
    target: str
    match: Match

    async def body(self) -> bytes:
        """The whole body. Raises `BodyTooLarge`, or a `ClientError` where it stops arriving."""
        ...

    def forwarded_lines(self) -> bytes:
        """The end-to-end headers as they are sent on, with those that a proxy adds; without length, type, host,
        identity, and what would choose another answer (`forwarding`)."""
        ...


class Lines(Struct, frozen=True, gc=False):
    """Header fields that many answers have alike. `wire`: the same as they go over the connection."""

    fields: Sequence[Header] = ()
    wire: bytes = b""


@lru_cache(maxsize=1024)
def rate_limit_lines(cap: int | None, remaining: int | None, *more: HeaderList) -> Lines:
    """`RateLimit-Policy` and `RateLimit`, and more that goes with them."""
    fields = [field for headers in (rate_limit_headers(cap, remaining), *more) for field in encoded(headers)]
    return Lines(fields, b"".join([b"%b: %b\r\n" % field for field in fields]))


_NO_LINES = Lines()


class Reply(Struct, gc=False):
    """An answer; `headers` are its own ones, `alike` come besides. `phrase` is empty where the status' own will do.
    `rest`: what is still to come of the body."""

    status: int
    headers: list[Header]
    body: bytes
    phrase: bytes = b""
    alike: Lines = _NO_LINES
    rest: Rest | None = None


Doing = Operation | Literal["pass", "view"]
"""What a request asks for: an operation of a matched route, nothing that the gateway has a say in, or its own view."""


class Decision:
    """`used` is None as long as the ledger has not said. `now`: seconds since the epoch. `closes`: the connection ends
    with the answer. `send_by`: when, on the monotonic clock, the request must have left, or not leave at all: what was
    recorded for it does not hold for ever. `account_id`: who asks for an attach, once that is known; `asked`: for which
    products. `client`: the address that the request came from, for the log."""

    __slots__ = (
        *("account_id", "asked", "client", "closes", "id", "language", "now", "operation", "send_by", "session_id"),
        *("surface", "used", "verdict"),
    )

    def __init__(self, operation: Doing, surface: Surface | None, language: Language, now: float) -> None:
        self.id = next_decision_id()
        self.operation = operation
        self.surface = surface
        self.language = language
        self.now = now
        self.account_id: str | None = None
        self.asked: Sequence[str] = ()
        self.session_id: str | None = None
        self.verdict: Verdict | None = None
        self.used: int | None = None
        self.closes = False
        self.client = ""
        self.send_by = math.inf

    @property
    def cap(self) -> int | None:
        return self.verdict.cap if self.verdict is not None else None

    @property
    def remaining(self) -> int | None:
        cap = self.cap
        if cap is None or (self.used is None and cap > 0):
            return None
        return max(0, cap - (self.used or 0))

    def header(self) -> Header:
        return b"Attachgate-Decision", self.id.encode()

    def lines(self, *more: HeaderList) -> Lines:
        """What an answer to an attach says of the cap; and `more`."""
        if self.operation != "attach":
            return rate_limit_lines(None, None, *more)
        return rate_limit_lines(self.cap, self.remaining, *more)
