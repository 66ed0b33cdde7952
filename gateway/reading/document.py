"""A JSON document read so strictly that no careful parser can read it otherwise (RFC 8259, I-JSON RFC 7493).

The standard library's parser is lenient in ways that matter here: it takes NaN, lets the last of two equal
keys win, lets lone surrogates through, recurses as deep as the input says. Its hooks close that: each fault
becomes a mark in the parsed document, and a walk in document order says where the first one is.

Knows nothing of routes.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from gateway.errors import BodyMalformed
from gateway.reading.spelling import shown

MAX_DEPTH = 16
MAX_VALUES = 20_000
_MAX_FLOAT_CHARS = 64
_MAX_INTEGER_CHARS = 20
_EXACT_INTEGER = 2**53 - 1
"""Beyond it, parsers that keep numbers as doubles read another number (RFC 7493 section 2.2)."""

_STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
_OTHER_ENCODINGS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


class _Fault:
    """Stands in a parsed document for a value that is refused; `member` is the name of the member at
    fault."""

    __slots__ = ("member", "problem")

    def __init__(self, problem: str, member: str | None = None) -> None:
        self.problem = problem
        self.member = member


def read_document(raw: bytes) -> Any:
    """The one JSON document in `raw`. Raises BodyMalformed with the JSON pointer, or the character, of what
    is wrong."""
    if raw.startswith(_OTHER_ENCODINGS) or b"\0" in raw:
        raise BodyMalformed("The body starts with a byte order mark or holds NUL bytes: send plain UTF-8.")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BodyMalformed(f"The body is not valid UTF-8 at byte {error.start}.") from None
    if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
        raise BodyMalformed(f"The body holds more than {MAX_VALUES} values: send fewer at once.")
    if _too_deep(text):
        raise BodyMalformed(f"The body nests deeper than {MAX_DEPTH} levels: send it flat.")
    try:
        value = _decoder.decode(text)
    except ValueError as error:
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise BodyMalformed(f"The body is not one JSON document{place}: check its syntax.") from None
    fault = _first_fault(value, "", "\\u" in text)
    if fault is not None:
        raise BodyMalformed(fault)
    return value


def kind(value: object) -> str:
    """What a value is, in JSON's words."""
    return _KINDS.get(type(value), "a number")


_KINDS: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    dict: "an object",
    list: "an array",
    type(None): "null",
}


def step(where: str, token: str | int) -> str:
    """The JSON pointer (RFC 6901) one level below `where`, fit for an error's detail."""
    return f"{where}/{shown(token.replace('~', '~0').replace('/', '~1')) if isinstance(token, str) else token}"


def inexact(value: Any, where: str) -> str | None:
    """Where in a value that is to be forwarded an integer stands that parsers read differently, or None."""
    if type(value) is int and not -_EXACT_INTEGER <= value <= _EXACT_INTEGER:
        return where
    if isinstance(value, dict):
        return next((found for k, v in value.items() if (found := inexact(v, step(where, k)))), None)
    if isinstance(value, list):
        return next((found for i, v in enumerate(value) if (found := inexact(v, step(where, i)))), None)
    return None


def _too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for found in _STRUCTURE.finditer(text):
        sign = found[0]
        if sign in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif sign in ("]", "}"):
            depth -= 1
    return False


def _first_fault(value: Any, where: str, escaped: bool) -> str | None:
    """The first fault in document order, as a sentence. `escaped`: whether any string may hold a lone
    surrogate, which only an escape can write."""
    if isinstance(value, _Fault):
        place = where if value.member is None else step(where, value.member)
        return f"{place or 'The document'}: {value.problem}."
    if type(value) is str:
        return _surrogate(value, where) if escaped else None
    if isinstance(value, dict):
        for name, item in value.items():
            found = _surrogate(name, step(where, name)) if escaped else None
            if found := found or _first_fault(item, step(where, name), escaped):
                return found
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if found := _first_fault(item, f"{where}/{index}", escaped):
                return found
    return None


def _surrogate(text: str, where: str) -> str | None:
    if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
        return None
    return f"{where or 'The document'}: holds half of a surrogate pair, which is no character."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Fault:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            break
        seen.add(name)
    return _Fault("is there twice, and parsers disagree on which of the two counts", name)


def _integer(digits: str) -> int | _Fault:
    if len(digits) <= _MAX_INTEGER_CHARS:
        value = int(digits)
        if -(2**63) <= value < 2**64:
            return value
    return _Fault("is an integer outside 64 bits")


def _float(digits: str) -> float | _Fault:
    if len(digits) <= _MAX_FLOAT_CHARS:
        value = float(digits)
        if math.isfinite(value):
            return value
    return _Fault("is a number too large or too long for a double")


def _constant(name: str) -> _Fault:
    return _Fault(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
