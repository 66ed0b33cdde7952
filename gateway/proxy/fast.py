"""The short way for the plainest attach: from the socket's bytes to the admission, without a request object.

Not a second parser. `recognise` knows one form byte for byte: one whole POST with HTTP/1.1, an address and header
fields in plain ASCII, a Content-Length that is exactly what follows, nothing about the connection but keep-alive.
Whatever differs in a single byte goes to aiohttp. What it recognises is read by the same `reading` package, judged by
the same admission and forwarded by the same pool as on the other way, so the two can't disagree: a test sends the same
requests both ways.

A client repeats its header fields with each request, byte for byte but for the length. What such a block was read as is
remembered, for the rules that it was read by.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time

from msgspec import Struct

from gateway import refusals
from gateway.admission.decision import Decision, Header, Reply
from gateway.errors import GatewayError
from gateway.policy.model import Surface
from gateway.proxy.rules import Rules
from gateway.reading.address import read_target
from gateway.reading.headers import Headers, forwarding
from gateway.reading.routes import Match

_HEAD = re.compile(
    rb"POST (/[A-Za-z0-9._~:/-]{1,1024}+) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z][A-Za-z0-9-]{0,63}+: [!-~](?:[ -~]{0,2046}[!-~])?\r\n){1,32}+)\r\n"
)
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,7}")
_UNUSUAL = frozenset(
    (
        *(b"transfer-encoding", b"expect", b"upgrade", b"keep-alive", b"te", b"trailer", b"content-encoding"),
        *(b"proxy-connection", b"http2-settings"),
    )
)
_WITHOUT_BODY = frozenset((204, 304))
MAX_HEADS = 8192
MAX_HEAD_BYTES = 1024
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class PlainIncoming:
    """A recognised request, in the form that admission reads."""

    __slots__ = ("_body", "headers", "match", "method", "peer_ip", "raw_headers", "scheme", "target")

    def __init__(
        self, match: Match, headers: Headers, raw_headers: Sequence[Header], body: bytes, peer_ip: str, scheme: str
    ) -> None:
        self.match = match
        self.method = "POST"
        self.target = match.path
        self.headers = headers
        self.raw_headers = raw_headers
        self.peer_ip = peer_ip
        self.scheme = scheme
        self._body = body

    async def body(self) -> bytes:
        return self._body

    def forwarded_headers(self) -> list[Header]:
        return self.headers.forward + forwarding(self.peer_ip, self.scheme, self.headers)


class _Head(Struct, frozen=True, gc=False):
    """A block of header fields as these rules read it. `headers` is None where it is not of the plain form.
    `length`: of the body, in bytes."""

    rules: Rules
    fields: Sequence[Header]
    headers: Headers | None
    length: int


class FastLane:
    """`rules` gives what requests are read by now; `answer` is the dispatcher's, which never fails."""

    def __init__(
        self,
        rules: Callable[[], Rules],
        answer: Callable[[PlainIncoming, Decision], Awaitable[Reply]],
        wall_clock: Callable[[], float],
    ) -> None:
        self._rules = rules
        self._answer = answer
        self._wall_clock = wall_clock
        self._heads: OrderedDict[bytes, _Head] = OrderedDict()

    def recognise(self, data: bytes, peer_ip: str, scheme: str) -> PlainIncoming | None:
        """The attach that these bytes are, whole and nothing else; None for anything that is not the plain form."""
        found = _HEAD.match(data)
        if found is None:
            return None
        body = data[found.end() :]
        rules = self._rules()
        head = self._head(found[2], rules)
        if head.headers is None or head.length != len(body) or head.length > rules.config.listen.max_body_bytes:
            return None
        try:
            match = rules.matcher.match("POST", read_target(found[1].decode("ascii"), method="POST"))
        except GatewayError:
            return None
        if match is None or match.route.operation != "attach":
            return None
        return PlainIncoming(match, head.headers, head.fields, body, peer_ip, scheme)

    def _head(self, block: bytes, rules: Rules) -> _Head:
        head = self._heads.get(block)
        if head is None or head.rules is not rules:
            head = _read_head(block, rules)
            if len(block) <= MAX_HEAD_BYTES:
                if len(self._heads) >= MAX_HEADS:
                    self._heads.popitem(last=False)
                self._heads[block] = head
        return head

    async def answer(self, incoming: PlainIncoming, *, closing: bool) -> tuple[bytes, bool]:
        """The whole answer as bytes, and whether the connection ends with it."""
        accepted = next((value for name, value in incoming.raw_headers if name.lower() == b"accept-language"), None)
        language = refusals.language(accepted.decode("ascii") if accepted is not None else None)
        decision = Decision("attach", Surface(incoming.match.route.surface), language, self._wall_clock())
        reply = await self._answer(incoming, decision)
        closes = closing or decision.closes
        return encode(reply, closes=closes), closes


def _read_head(block: bytes, rules: Rules) -> _Head:
    """`headers` is None where the block is not of the plain form."""
    fields: list[Header] = []
    length = b""
    for line in block[:-2].split(b"\r\n"):
        name, _, value = line.partition(b": ")
        lower = name.lower()
        if lower in _UNUSUAL or (lower == b"connection" and value != b"keep-alive"):
            return _Head(rules, (), None, 0)
        if lower == b"content-length":
            length = value
        fields.append((name, value))
    if not _LENGTH.fullmatch(length):
        return _Head(rules, (), None, 0)
    try:
        return _Head(rules, fields, rules.headers.read(fields, (1, 1)), int(length))
    except GatewayError:
        return _Head(rules, (), None, 0)


@lru_cache(maxsize=2)
def _date(now: int) -> bytes:
    return b"Date: %b\r\n" % formatdate(now, usegmt=True).encode()


def encode(reply: Reply, *, closes: bool) -> bytes:
    """A reply on the wire (RFC 9112)."""
    status_line = None if reply.phrase else _STATUS_LINES.get(reply.status)
    parts = [status_line or b"HTTP/1.1 %d %b\r\n" % (reply.status, reply.phrase)]
    dated = False
    for name, value in reply.headers:
        parts.append(b"%b: %b\r\n" % (name, value))
        dated = dated or name in (b"Date", b"date")
    if not dated:
        parts.append(_date(int(time())))
    if closes:
        parts.append(b"Connection: close\r\n")
    if reply.status in _WITHOUT_BODY:
        parts.append(b"\r\n")
    else:
        parts.append(b"Content-Length: %d\r\n\r\n" % len(reply.body))
        parts.append(reply.body)
    return b"".join(parts)
