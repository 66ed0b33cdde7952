"""The short way for the plainest attach: from the socket's bytes to the admission, without a request object.

Not a second parser. `recognise` knows one form byte for byte: one whole POST with HTTP/1.1, an address and header
fields in plain ASCII, a Content-Length that is exactly what follows, nothing about the connection but keep-alive.
Whatever differs in a single byte goes to aiohttp. What it recognises is read by the same `reading` package, judged by
the same admission and forwarded by the same pool as on the other way, so the two can't disagree: a test sends the same
requests both ways.

A client repeats its address and its header fields with each request, byte for byte. What they were read as is
remembered, for as long as the rules that they were read by hold.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from time import time

from msgspec import Struct

from gateway import refusals
from gateway.admission.decision import Decision, Header, Reply
from gateway.admission.forwarding import forwarded_lines
from gateway.errors import GatewayError
from gateway.policy.model import Surface
from gateway.proxy.rules import Rules
from gateway.reading.address import read_target
from gateway.reading.headers import Headers, forwarding
from gateway.reading.routes import Match
from gateway.upstream.rest import Rest

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
_SURFACES: dict[str, Surface] = {surface.value: surface for surface in Surface}
MAX_REMEMBERED = 16_384
MAX_REMEMBERED_BYTES = 1024
"""Of an address, or of a block of header fields."""
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class Head(Struct, frozen=True, eq=False, gc=False):
    """A block of header fields, as it was read; another one of the same fields is not equal. `length`: of the body, in
    bytes."""

    headers: Headers
    length: int
    language: refusals.Language


class PlainIncoming:
    """A recognised request, in the form that admission reads."""

    __slots__ = ("_body", "_head", "headers", "language", "match", "method", "peer_ip", "scheme", "target")

    def __init__(self, match: Match, head: Head, body: bytes, peer_ip: str, scheme: str) -> None:
        self.match = match
        self.method = "POST"
        self.target = match.path
        self.headers = head.headers
        self.language = head.language
        self.peer_ip = peer_ip
        self.scheme = scheme
        self._body = body
        self._head = head

    async def body(self) -> bytes:
        return self._body

    def forwarded_lines(self) -> bytes:
        return _lines(self._head, self.peer_ip, self.scheme)


@lru_cache(MAX_REMEMBERED)
def _lines(head: Head, peer_ip: str, scheme: str) -> bytes:
    return forwarded_lines(head.headers.forward + forwarding(peer_ip, scheme, head.headers))


class _Reading:
    """What plain requests are read as by one set of rules. None is what is not of the plain form, or no attach.

    Its memory knows nothing of it, and so goes with it when other rules come, without the collector."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.max_body_bytes = rules.config.listen.max_body_bytes
        self.match = lru_cache(MAX_REMEMBERED)(partial(_read_address, rules))
        self.read_head = partial(_read_head, rules)
        self.remembered_head = lru_cache(MAX_REMEMBERED)(self.read_head)


def _read_address(rules: Rules, address: bytes) -> Match | None:
    try:
        match = rules.matcher.match("POST", read_target(address.decode("ascii"), method="POST"))
    except GatewayError:
        return None
    return match if match is not None and match.route.operation == "attach" else None


def _read_head(rules: Rules, block: bytes) -> Head | None:
    fields: list[Header] = []
    length = accepted = None
    for line in block[:-2].split(b"\r\n"):
        name, _, value = line.partition(b": ")
        lower = name.lower()
        if lower in _UNUSUAL or (lower == b"connection" and value != b"keep-alive"):
            return None
        if lower == b"content-length":
            length = value
        elif lower == b"accept-language" and accepted is None:
            accepted = value.decode("ascii")
        fields.append((name, value))
    if length is None or not _LENGTH.fullmatch(length):
        return None
    try:
        return Head(rules.headers.read(fields, (1, 1)), int(length), refusals.language(accepted))
    except GatewayError:
        return None


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
        self._reading = _Reading(rules())

    def recognise(self, data: bytes, peer_ip: str, scheme: str) -> PlainIncoming | None:
        """The attach that these bytes are, whole and nothing else; None for anything that is not the plain form."""
        found = _HEAD.match(data)
        if found is None:
            return None
        reading = self._reading
        if reading.rules is not (rules := self._rules()):
            reading = self._reading = _Reading(rules)
        address, block = found.groups()
        head = reading.remembered_head(block) if len(block) <= MAX_REMEMBERED_BYTES else reading.read_head(block)
        body = data[found.end() :]
        if head is None or head.length != len(body) or head.length > reading.max_body_bytes:
            return None
        match = reading.match(address)
        return PlainIncoming(match, head, body, peer_ip, scheme) if match is not None else None

    async def answer(self, incoming: PlainIncoming, closing: Callable[[], bool]) -> tuple[bytes, bool, Rest | None]:
        """The answer as bytes, whether the connection ends with it, and what is still to come of it. `closing` says,
        when it is there, whether connections end now."""
        surface = _SURFACES[incoming.match.route.surface]
        decision = Decision("attach", surface, incoming.language, self._wall_clock())
        reply = await self._answer(incoming, decision)
        closes = decision.closes or closing()
        return encode(reply, closes=closes), closes, reply.rest


@lru_cache(maxsize=2)
def _date(now: int) -> bytes:
    return b"Date: %b\r\n" % formatdate(now, usegmt=True).encode()


def encode(reply: Reply, *, closes: bool, chunks: bool = True) -> bytes:
    """A reply on the wire (RFC 9112), as far as it is there. A body whose length nobody said is sent in `chunks`, or
    ends with its connection."""
    status_line = None if reply.phrase else _STATUS_LINES.get(reply.status)
    parts = [status_line or b"HTTP/1.1 %d %b\r\n" % (reply.status, reply.phrase), reply.alike.wire]
    dated = False
    for name, value in reply.headers:
        parts += (name, b": ", value, b"\r\n")
        if len(name) == 4:
            dated = dated or name.lower() == b"date"
    if not dated:
        parts.append(_date(int(time())))
    if closes:
        parts.append(b"Connection: close\r\n")
    length = len(reply.body) if reply.rest is None else reply.rest.length
    if reply.status in _WITHOUT_BODY:
        parts.append(b"\r\n")
    elif length is not None:
        parts += (b"Content-Length: %d\r\n\r\n" % length, reply.body)
    elif chunks:
        parts += (b"Transfer-Encoding: chunked\r\n\r\n", chunk(reply.body))
    else:
        parts += (b"\r\n", reply.body)
    return b"".join(parts)


def chunk(piece: bytes) -> bytes:
    """A piece of a body whose length is not known (RFC 9112 section 7.1); an empty one is its end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)
