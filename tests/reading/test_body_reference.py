"""The reading of bodies against a slow one that shares no code with it.

The reference parses JSON by hand, keeps objects as lists of pairs, and then asks in plain words what an attach may say.
Both must agree on every input: the same products, or refused. And whatever was let through must read the same to the
most different parsers an upstream may have.
"""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.config import DEFAULT_ROUTES, Limits
from gateway.errors import BodyMalformed, ClientError
from gateway.reading.body import BodyReader, applied_ids

ATTACH = next(route for route in DEFAULT_ROUTES if route.operation == "attach")
MAX_BATCH = 3
READER = BodyReader(DEFAULT_ROUTES, Limits(max_batch_products=MAX_BATCH))
BODY = READER.of(ATTACH)


class Bad(Exception):
    """Not one unambiguous document."""


class Reference:
    """Recursive descent over RFC 8259's grammar, one character at a time."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def document(self) -> Any:
        self.space()
        value = self.value(1)
        self.space()
        if self.at != len(self.text):
            raise Bad
        return value

    def peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def take(self, expected: str) -> None:
        if not self.text.startswith(expected, self.at):
            raise Bad
        self.at += len(expected)

    def space(self) -> None:
        while self.peek() and self.peek() in " \t\n\r":
            self.at += 1

    def value(self, depth: int) -> Any:
        first = self.peek()
        if first and first in "[{" and depth > 16:
            raise Bad
        if first == "{":
            return self.many("{", "}", depth, self.member)
        if first == "[":
            return ("array", self.many("[", "]", depth, self.value))
        if first == '"':
            return self.string()
        for word, meaning in (("true", True), ("false", False), ("null", None)):
            if self.text.startswith(word, self.at):
                self.take(word)
                return ("word", meaning)
        return self.number()

    def many(self, opener: str, closer: str, depth: int, one: Any) -> list[Any]:
        self.take(opener)
        self.space()
        items: list[Any] = []
        if self.peek() == closer:
            self.take(closer)
            return items
        while True:
            self.space()
            items.append(one(depth + 1))
            self.space()
            if self.peek() == closer:
                self.take(closer)
                return items
            self.take(",")

    def member(self, depth: int) -> tuple[str, Any]:
        name = self.string()
        self.space()
        self.take(":")
        self.space()
        return name, self.value(depth)

    def string(self) -> str:
        self.take('"')
        units = b""
        while (char := self.peek()) != '"':
            if not char or char < " ":
                raise Bad
            self.at += 1
            if char != "\\":
                units += char.encode("utf-16-le")
                continue
            escape = self.peek()
            self.at += 1
            if escape == "u":
                digits = self.text[self.at : self.at + 4]
                if len(digits) != 4 or not all(c in "0123456789abcdefABCDEF" for c in digits):
                    raise Bad
                self.at += 4
                units += int(digits, 16).to_bytes(2, "little")
            elif escape and escape in '"\\/bfnrt':
                units += '"\\/\b\f\n\r\t'['"\\/bfnrt'.index(escape)].encode("utf-16-le")
            else:
                raise Bad
        self.take('"')
        try:
            return units.decode("utf-16-le")
        except UnicodeDecodeError:
            raise Bad from None

    def number(self) -> Any:
        found = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][+-]?[0-9]+)?").match(self.text, self.at)
        if found is None:
            raise Bad
        self.at = found.end()
        if found[2] is None and found[3] is None:
            if len(found[0]) > 20 or not -(2**63) <= int(found[0]) < 2**64:
                raise Bad
        elif len(found[0]) > 64 or float(found[0]) in (float("inf"), float("-inf")):
            raise Bad
        return ("number", found[0])


def without_repeats(value: Any) -> Any:
    if isinstance(value, list):
        names = [name for name, _ in value]
        if len({*names}) != len(names):
            raise Bad
        for _, item in value:
            without_repeats(item)
    elif isinstance(value, tuple) and value[0] == "array":
        for item in value[1]:
            without_repeats(item)
    return value


def nearly(name: str) -> str:
    for _ in range(2):
        name = unicodedata.normalize("NFKD", name).upper().casefold()
    return "".join(c for c in name if unicodedata.category(c)[0] not in ("M", "C")).strip(" .\t")


def reference(raw: bytes) -> tuple[str, ...]:
    """The products that an attach names. Raises Bad."""
    if raw[:3] == b"\xef\xbb\xbf" or raw[:2] in (b"\xff\xfe", b"\xfe\xff") or 0 in raw:
        raise Bad
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Bad from None
    document = without_repeats(Reference(text).document())
    if not isinstance(document, list):
        raise Bad
    known = ("product_id", "product_ids")
    if any(nearly(name) in known and name not in known for name, _ in document):
        raise Bad
    said = [(name, value) for name, value in document if name in known]
    if len(said) != 1:
        raise Bad
    ((name, value),) = said
    if name == "product_id":
        ids = [value]
    elif isinstance(value, tuple) and value[0] == "array":
        ids = value[1]
    else:
        raise Bad
    if not 1 <= len(ids) <= MAX_BATCH:
        raise Bad
    if any(not isinstance(one, str) or not re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", one) for one in ids):
        raise Bad
    if "." in ids or ".." in ids or len({*ids}) != len(ids):
        raise Bad
    return tuple(ids)


def escaped(draw: st.DrawFn, text: str) -> str:
    """A JSON string of this text, some characters perhaps as escapes."""
    if draw(st.integers(0, 3)):
        return json.dumps(text, ensure_ascii=draw(st.booleans()))
    return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in text) + '"'


NAMES = st.sampled_from(
    [
        "product_id",
        "product_id",
        "product_ids",
        "product_ids",
        "x",
        "y",
        "Product_Id",
        "ｐroduct_ids",
        "product_id.",
        "é",
        "",
    ]
)
IDS = st.sampled_from(["p1", "p2", "p3", "p4", "", "a b", "..", "1", "é", "x" * 128, "x" * 129, '"', "\\"])
SCALARS = st.sampled_from(
    [
        "1",
        "-0",
        "1.0",
        "1e5",
        "1e999",
        "18446744073709551616",
        "true",
        "null",
        "NaN",
        "01",
        "+1",
        '"\\ud800"',
        '"\\ud83d\\ude00"',
    ]
)
SPACES = st.sampled_from(["", "", "", " ", "\n\t", "\r", "\x0b"])


@st.composite
def documents(draw: st.DrawFn, depth: int = 0) -> str:
    """The text of a document: mostly an object near what an attach says, often a little wrong."""
    space = draw(SPACES)
    what = draw(st.integers(0, 9)) if depth else 0
    if what < 4 and depth < 4:
        members = [
            f"{space}{escaped(draw, draw(NAMES))}{space}:{space}{draw(documents(depth + 1))}"
            for _ in range(draw(st.integers(0, 3)) if depth else draw(st.sampled_from([1, 1, 1, 2, 3, 0])))
        ]
        return "{" + ",".join(members) + space + "}"
    if what < 6 and depth < 4:
        return "[" + ",".join(draw(documents(depth + 1)) for _ in range(draw(st.integers(0, 4)))) + space + "]"
    return draw(SCALARS) if what == 9 else escaped(draw, draw(IDS)) + space


@st.composite
def attaches(draw: st.DrawFn) -> str:
    """An attach that is right but for the odd extra member."""
    name = draw(st.sampled_from(["product_id", "product_ids"]))
    ids = draw(st.lists(IDS, min_size=0, max_size=4))
    value = escaped(draw, ids[0]) if name == "product_id" and ids else f"[{','.join(escaped(draw, i) for i in ids)}]"
    members = [f"{escaped(draw, name)}:{value}"]
    if draw(st.booleans()):
        members.insert(draw(st.integers(0, 1)), f"{escaped(draw, draw(NAMES))}:{draw(documents(3))}")
    return "{" + ",".join(members) + "}"


@st.composite
def plain(draw: st.DrawFn) -> str:
    """An attach in the plainest form, with spaces wherever they may be."""
    ids = draw(st.lists(st.sampled_from(["p1", "p2", "a.b", "..", "x" * 128, "c d"]), min_size=1, max_size=3))
    text = '{"product_id":"p1"}' if draw(st.booleans()) else '{"product_ids":["' + '","'.join(ids) + '"]}'
    for sign in "{}[]:,":
        text = text.replace(sign, draw(SPACES) + sign + draw(SPACES))
    return text


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    raw = bytearray(draw(st.one_of(documents(), attaches(), plain())).encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(raw)))
        how = draw(st.integers(0, 2))
        if how == 0:
            raw[at:at] = draw(
                st.sampled_from([b'"', b"{", b"}", b"\\", b",", b"\0", b"\xff", b"\xef\xbb\xbf", b"1", b" "])
            )
        elif how == 1:
            del raw[at : at + 1]
        else:
            raw[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(raw)


def first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def upstream(document: dict[str, Any]) -> list[Any]:
    """What an upstream attaches that takes whatever it finds."""
    many = document.get("product_ids", [])
    one = [document["product_id"]] if "product_id" in document else []
    return one + (many if isinstance(many, list) else [many])


@settings(max_examples=1500, deadline=None)
@given(damaged())
@example(b'{"product_id":"a","pr\\u006fduct_id":"b"}')
@example(b'{"product_ids":["p1","p2","p3","p4"]}')
@example(b'{"product_ids":["p1","p2","p3"]}')
@example(b"")
@example(b'{"product_id":"p1"} ')
@example(b'{"product_id":"p1"}\x0b')
@example(b'{"x":' + b"[" * 15 + b"]" * 15 + b',"product_id":"p1"}')
@example(b'{"x":' + b"[" * 16 + b"]" * 16 + b',"product_id":"p1"}')
def test_the_reading_agrees_with_the_reference_on_every_body(raw: bytes) -> None:
    try:
        expected: tuple[str, ...] | None = reference(raw)
    except Bad:
        expected = None
    try:
        read = BODY.read(raw, "application/json", None)
    except BodyMalformed as error:
        if expected is not None:
            raise AssertionError(f"{expected} was refused") from error
        return
    assert read.product_ids == expected
    assert read.members == {}
    # The canonical body is a fixed point, and says the same whichever of two keys wins, to the client's parser too.
    assert BODY.read(read.canonical, "application/json", None) == read
    for body in (raw, read.canonical):
        for hook in (dict, first_wins):
            assert upstream(json.loads(body, object_pairs_hook=hook)) == list(read.product_ids)


@settings(max_examples=300, deadline=None)
@given(damaged())
def test_the_plain_way_never_reads_otherwise_than_the_strict_one(raw: bytes) -> None:
    if (read := BODY._read_plain(raw)) is not None:
        assert BODY._read_strictly(raw) == read


@given(
    st.binary(max_size=60),
    st.one_of(st.none(), st.just("application/json"), st.text(max_size=20)),
    st.sampled_from([None, "x"]),
)
def test_whatever_comes_only_the_known_errors_leave(raw: bytes, content_type: str | None, coding: str | None) -> None:
    for route in DEFAULT_ROUTES:
        with contextlib.suppress(ClientError):
            READER.of(route).read(raw, content_type, coding)
    for pointer in ("/attached/*", "/a", "/*/*"):
        applied = applied_ids(raw, pointer)
        assert applied is None or all(isinstance(one, str) for one in applied)
