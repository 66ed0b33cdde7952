"""The header fields, read once: how the message is framed, who says that he asks, and what may go on to the
upstream.

Works on the raw fields, as the parser in front found them. aiohttp's C parser refuses most of what is broken;
left open by it, and closed here: HTTP/0.9 and 2.0 request lines, Transfer-Encoding on HTTP/1.0 or with a
second coding, an empty or odd Host, repeated fields that must be single, unknown expectations. The rest is
checked again all the same: what is forwarded must not depend on which parser was in front.

Spellings that differ from a field known here only in punctuation (`X_Account_Id`, `Transfer_Encoding`) are
dropped: an upstream behind CGI or WSGI takes them for the field itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

import msgspec

from gateway.errors import HeadersMalformed, HeadersTooLarge

Fields = list[tuple[bytes, bytes]]


class Headers(msgspec.Struct, frozen=True, gc=False):
    """What was understood of the fields.

    `forward`: the end-to-end fields without Host, without what frames the message, without the identity
    header and without everything that could redirect, re-method or re-attribute the request. `content`: the
    fields that describe the body's bytes; they are only true while the client's own bytes are forwarded.
    `length` in bytes, None where the client gave none. `identity` and `authorization` as sent, at most once
    each. `upgrade`: the protocol that the client asks to change to, in lower case, or empty. `forwarded_proto` and
    `forwarded_host`: what a trusted proxy in front says that the client asked for, or empty.
    """

    forward: Fields
    content: Fields
    host: bytes
    length: int | None
    chunked: bool
    content_type: str | None
    content_encoding: str | None
    identity: str | None
    authorization: str | None
    expects_continue: bool
    upgrade: bytes
    forwarded_for: bytes
    via: bytes
    forwarded_proto: bytes
    forwarded_host: bytes

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)


class _Place(Enum):
    """Where a field goes: on to the upstream, on as long as the body's bytes do, or no further."""

    forward = 0
    content = 1
    here = 2


_FORWARD, _CONTENT, _HERE = _Place


class _Known:
    """A field that is read here, under `name`, or is refused where it is repeated."""

    __slots__ = ("name", "place", "single")

    def __init__(self, name: str, place: _Place, single: bool) -> None:
        self.name = name
        self.place = place
        self.single = single


_END_TO_END = _Known("", _FORWARD, False)
_DROPPED = _Known("", _HERE, False)

_ONCE_FORWARDED = ("authorization",)
_ONCE_CONTENT = ("content-type", "content-encoding", "content-range", "content-location")
_MANY_CONTENT = (
    "content-language",
    "content-disposition",
    "content-md5",
    "digest",
    "content-digest",
    "repr-digest",
)
_ONCE_HERE = ("host", "content-length", "transfer-encoding", "expect")
_MANY_HERE = ("connection", "upgrade", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "via")
_HOP_BY_HOP = ("keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer")
_OVERRIDES = (
    *(
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
        "x-original-method",
        "x-forwarded-method",
    ),
    *("x-original-url", "x-original-uri", "x-rewrite-url", "x-override-url", "x-http-path-override"),
    *("x-forwarded-uri", "x-forwarded-path", "x-forwarded-prefix", "x-original-host", "x-host"),
    *("x-envoy-original-path", "x-envoy-original-host", "x-envoy-original-method"),
)
_REWRITTEN = (
    *("forwarded", "x-forwarded-port", "x-forwarded-server"),
    "attachgate-decision",
)
"""A claim of the client about itself that nobody has checked (RFC 7239), or the gateway's own to say."""

_KNOWN: dict[str, _Known] = {
    **{name: _Known(name, _FORWARD, True) for name in _ONCE_FORWARDED},
    **{name: _Known(name, _CONTENT, True) for name in _ONCE_CONTENT},
    **{name: _Known(name, _CONTENT, False) for name in _MANY_CONTENT},
    **{name: _Known(name, _HERE, True) for name in _ONCE_HERE},
    **{name: _Known(name, _HERE, False) for name in _MANY_HERE},
    **dict.fromkeys((*_HOP_BY_HOP, *_OVERRIDES, *_REWRITTEN, "http2-settings"), _DROPPED),
}
_NEVER_BY_CONNECTION = frozenset((*_ONCE_FORWARDED, *_ONCE_CONTENT, *_MANY_CONTENT, "cookie"))
"""Fields for every recipient: a Connection field that names one is wrong (RFC 9110 section 7.6.1) and not
obeyed."""
_PLAIN_CONNECTIONS = frozenset((b"close", b"keep-alive"))
_ORDINARY_OPTIONS = frozenset((b"", b"close", b"keep-alive", b"upgrade"))

_TOKEN = re.compile(rb"[0-9A-Za-z!#$%&'*+.^_`|~-]{1,256}")
_PUNCTUATION = re.compile(r"[^a-z0-9]")
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_SCHEMES = frozenset((b"http", b"https"))
_VALUE_BYTES = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
"""RFC 9110 section 5.5. Bytes from 0x80 on are opaque, and stay so; in fields that are read here they are
refused."""

_VERSIONS = ((1, 1), (1, 0))
_MAX_REMEMBERED_NAMES = 1024
_MAX_REMEMBERED_CHARS = 64


class HeaderReader:
    """Reads header fields for one identity header. Limits: number of fields, and bytes of all names and
    values. `behind_proxies`: whether what `X-Forwarded-Proto` and `X-Forwarded-Host` say is believed."""

    def __init__(
        self,
        identity_header: str,
        *,
        max_headers: int = 100,
        max_header_bytes: int = 16_384,
        behind_proxies: bool = False,
    ) -> None:
        self._identity = identity_header.lower()
        self._identity_folded = _PUNCTUATION.sub("-", self._identity)
        self._max_headers = max_headers
        self._max_header_bytes = max_header_bytes
        self._behind_proxies = behind_proxies
        self._names: dict[bytes, _Known] = {}
        self._hosts: set[bytes] = set()

    def read(self, raw_headers: Sequence[tuple[bytes, bytes]], version: tuple[int, int]) -> Headers:
        """Raises HeadersMalformed for what could be framed or read in two ways, HeadersTooLarge over a
        limit."""
        if version not in _VERSIONS:
            raise HeadersMalformed("The HTTP version is neither 1.1 nor 1.0: use HTTP/1.1.")
        self._check_size_and_bytes(raw_headers)
        names = self._names
        forward: Fields = []
        content: Fields = []
        seen: dict[str, bytes] = {}
        for pair in raw_headers:
            known = names.get(pair[0]) or self._learn(pair[0])
            if known is _END_TO_END:
                forward.append(pair)
            elif known is not _DROPPED:
                name, place = known.name, known.place
                seen[name] = _joined(known, seen[name], pair[1]) if name in seen else pair[1]
                if place is _CONTENT:
                    content.append(pair)
                elif place is _FORWARD:
                    forward.append(pair)
        return self._understood(seen, forward, content, version)

    def _check_size_and_bytes(self, raw_headers: Sequence[tuple[bytes, bytes]]) -> None:
        if len(raw_headers) > self._max_headers:
            raise HeadersTooLarge(f"More than {self._max_headers} header fields: send fewer.")
        everything = b"".join([part for pair in raw_headers for part in pair])
        if len(everything) > self._max_header_bytes:
            raise HeadersTooLarge(f"The header fields hold more than {self._max_header_bytes} bytes: send less.")
        if everything.translate(None, _VALUE_BYTES):
            raise HeadersMalformed("A header field holds a control character or a line break: remove it.")

    def _learn(self, raw_name: bytes) -> _Known:
        known = self._classify(raw_name)
        if len(self._names) < _MAX_REMEMBERED_NAMES and len(raw_name) <= _MAX_REMEMBERED_CHARS:
            self._names[bytes(raw_name)] = known
        return known

    def _classify(self, raw_name: bytes) -> _Known:
        if not _TOKEN.fullmatch(raw_name):
            raise HeadersMalformed("A header field's name is not a token (RFC 9110 section 5.1).")
        name = raw_name.decode("ascii").lower()
        if name == self._identity:
            return _Known("identity", _HERE, True)
        if (known := _KNOWN.get(name)) is not None:
            return known
        folded = _PUNCTUATION.sub("-", name)
        if folded == self._identity_folded or folded in _KNOWN:
            return _DROPPED
        return _END_TO_END

    def _understood(
        self, seen: dict[str, bytes], forward: Fields, content: Fields, version: tuple[int, int]
    ) -> Headers:
        host = self._host(seen, version)
        length, chunked = _framing(seen, version)
        expect = seen.get("expect")
        if expect is not None and expect.lower() != b"100-continue":
            raise HeadersMalformed("Expect asks for something other than 100-continue: leave it out.")
        upgrade = b""
        connection = seen.get("connection")
        if connection is not None and connection not in _PLAIN_CONNECTIONS:
            options = {option.strip(b" \t") for option in connection.lower().split(b",")}
            if b"upgrade" in options:
                upgrade = seen.get("upgrade", b"").lower()
            if named := options - _ORDINARY_OPTIONS:
                forward = _without(forward, named)
        return Headers(
            forward,
            content,
            host,
            length,
            chunked,
            _text(seen, "content-type"),
            _text(seen, "content-encoding"),
            _text(seen, "identity"),
            _text(seen, "authorization"),
            expect is not None and version == (1, 1),
            upgrade,
            seen.get("x-forwarded-for", b""),
            seen.get("via", b""),
            *(self._asked_for(seen) if self._behind_proxies else (b"", b"")),
        )

    def _asked_for(self, seen: dict[str, bytes]) -> tuple[bytes, bytes]:
        """Scheme and host as a proxy in front was asked for them; empty where it says none, several, or nonsense."""
        scheme, host = seen.get("x-forwarded-proto", b"").lower(), seen.get("x-forwarded-host", b"")
        return scheme if scheme in _SCHEMES else b"", host if _HOST.fullmatch(host) else b""

    def _host(self, seen: dict[str, bytes], version: tuple[int, int]) -> bytes:
        host = seen.get("host")
        if host is None:
            if version == (1, 1):
                raise HeadersMalformed("Host is missing: HTTP/1.1 requires it.")
            return b""
        if host not in self._hosts:
            if not _HOST.fullmatch(host):
                raise HeadersMalformed("Host is not a host name or address with an optional port.")
            if len(self._hosts) < _MAX_REMEMBERED_NAMES:
                self._hosts.add(bytes(host))
        return host


def _joined(known: _Known, before: bytes, value: bytes) -> bytes:
    if known.single:
        raise HeadersMalformed(f"The header field {known.name} comes more than once: send it once.")
    return b"%b, %b" % (before, value)


def _framing(seen: dict[str, bytes], version: tuple[int, int]) -> tuple[int | None, bool]:
    """Length in bytes, and whether the body is chunked (RFC 9112 section 6)."""
    length = seen.get("content-length")
    coding = seen.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise HeadersMalformed("Content-Length and Transfer-Encoding exclude each other: send one.")
        if version == (1, 0):
            raise HeadersMalformed("Transfer-Encoding does not exist in HTTP/1.0: send Content-Length.")
        if coding.lower() != b"chunked":
            raise HeadersMalformed("Transfer-Encoding must be exactly `chunked`.")
        return None, True
    if length is None:
        return None, False
    if not _LENGTH.fullmatch(length):
        raise HeadersMalformed("Content-Length is not a number of bytes in decimal digits.")
    return int(length), False


def _without(fields: Fields, named: set[bytes]) -> Fields:
    return [
        pair
        for pair in fields
        if (name := pair[0].lower()) not in named or name.decode("ascii") in _NEVER_BY_CONNECTION
    ]


def _text(seen: dict[str, bytes], name: str) -> str | None:
    value = seen.get(name)
    if value is None:
        return None
    if not value.isascii():
        raise HeadersMalformed(f"The header field {name} holds a character outside ASCII.")
    return value.decode("ascii")


def forwarding(peer: str, scheme: str, headers: Headers) -> Fields:
    """The fields that say for whom a request is forwarded: the peer's address appended to what came, the scheme
    and host that the client asked for (those of this hop, where no trusted proxy in front says other ones), and
    this gateway in Via (RFC 9110 section 7.6.3). `peer` is empty for a unix socket."""
    came_from = peer.encode("ascii", "replace") or b"unknown"
    fields = [
        (
            b"X-Forwarded-For",
            b"%b, %b" % (headers.forwarded_for, came_from) if headers.forwarded_for else came_from,
        ),
        (b"X-Forwarded-Proto", headers.forwarded_proto or scheme.encode("ascii", "replace")),
        (b"Via", b"%b, 1.1 attachgate" % headers.via if headers.via else b"1.1 attachgate"),
    ]
    if host := headers.forwarded_host or headers.host:
        fields.append((b"X-Forwarded-Host", host))
    return fields
