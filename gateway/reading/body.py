"""The body of a matched request: which products it names, and the document that is forwarded in its place.

Promises: `canonical` is written here from what was understood, so it names exactly `product_ids`, by one of
the route's pointers, and holds nothing besides but the route's extra members. A client's other members are
dropped. What another parser could read as other products is refused, so a strict and a lenient upstream
attach the same. A product named twice in one request is refused, not collapsed: the answer must be able to
speak of each product asked for.

Two ways lead to the same reading. Bodies of the plainest form, nearly all, are recognized byte for byte by a
regular expression that leaves no room for a second member, an escape or a character outside ASCII. Everything
else goes through the strict reading of `document`. Which way was taken can't be told from the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from gateway.config import Limits, Route
from gateway.errors import BodyMalformed, ConfigurationError, MediaTypeUnsupported, Mistake
from gateway.reading.document import inexact, kind, read_document, step
from gateway.reading.headers import Headers
from gateway.reading.pointers import Names, Taking, applied_ids, compiled, pointer_problem, tokens
from gateway.reading.spelling import MAX_NAME_CHARS, fold, id_check

__all__ = ["BodyRead", "BodyReader", "RouteBody", "applied_ids"]

_JSON_TYPE = re.compile(r'application/json(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?', re.ASCII | re.IGNORECASE)
"""ASCII: else `s` would match a long s. One optional parameter, since several charsets have several
readings."""
MAX_REMEMBERED = 4096
MAX_REMEMBERED_BYTES = 256
"""Of bodies in the plainest form, whatever they were read as: many rooms ask for the same products."""
_WITHOUT_BODY = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))

_SIMPLE_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = rb"[ \t\n\r]*+"
_PLAIN = rb"[ !#-\[\]-~]*+"
"""The inside of a JSON string that stands for itself: printable ASCII without quote and backslash."""

_decode_strings = msgspec.json.Decoder(list[str]).decode
_encode = msgspec.json.encode


class BodyRead(msgspec.Struct, frozen=True, gc=False):
    """`product_ids` in the order of the body, each once. `members`: the extra members that were there.
    `canonical`: what to forward, empty where the client sent nothing."""

    product_ids: tuple[str, ...]
    members: dict[str, Any]
    canonical: bytes


class BodyReader:
    """The bodies of all routes. Raises ConfigurationError with every route that it can't read exactly."""

    def __init__(self, routes: Sequence[Route], limits: Limits, *, file: str = "gateway.toml") -> None:
        mistakes = [
            Mistake(file, f"routes[{index}].{key}", problem)
            for index, route in enumerate(routes)
            for key, problem in _problems(route)
        ]
        if mistakes:
            raise ConfigurationError(mistakes)
        self._routes = tuple(routes)
        self._bodies = {route: RouteBody(route, limits) for route in routes}
        # A route's hash goes over all its fields; while routes are held here, their identity says as much.
        self._by_identity = {id(route): self._bodies[route] for route in self._routes}

    def of(self, route: Route) -> RouteBody:
        return self._by_identity.get(id(route)) or self._bodies[route]

    def read(self, route: Route, raw: bytes, headers: Headers) -> BodyRead:
        """Raises BodyMalformed, or MediaTypeUnsupported for a body that is not plain JSON in UTF-8."""
        return self.of(route).read(raw, headers.content_type, headers.content_encoding)


class RouteBody:
    """How the body of one route is read."""

    def __init__(self, route: Route, limits: Limits) -> None:
        self._is_id = id_check(limits.id_pattern)
        self._max_ids = limits.max_batch_products
        self._root = compiled(route.product_ids)
        self._extras = route.extra_members
        self._id_extras = {name for name in self._extras if name.endswith("_id") or f"{{{name}}}" in route.path}
        self._root.names = Names((*self._root.members, *self._extras))
        self._forbidden = route.method in _WITHOUT_BODY
        self._required = bool(route.product_ids or route.extra_members)
        self._plain, self._forms = _plain_forms(route.product_ids)
        self._remembered = lru_cache(MAX_REMEMBERED)(self._read_plain)

    def read(self, raw: bytes, content_type: str | None, content_encoding: str | None) -> BodyRead:
        """`content_type` and `content_encoding` are the fields' values, None where absent; they only matter
        where there is a body. Raises BodyMalformed or MediaTypeUnsupported."""
        if not raw:
            if self._required:
                raise BodyMalformed("The request has no body: a JSON object is expected.")
            return BodyRead((), {}, b"")
        if self._forbidden:
            raise BodyMalformed("The request has a body, and this operation takes none: send it without.")
        if content_type != "application/json" or content_encoding is not None:
            _check_media(content_type, content_encoding)
        plain = self._remembered(raw) if len(raw) <= MAX_REMEMBERED_BYTES else self._read_plain(raw)
        return plain or self._read_strictly(raw)

    def _read_plain(self, raw: bytes) -> BodyRead | None:
        """The reading of a body in the plainest form; None for any other, and for one that is refused."""
        found = self._plain.fullmatch(raw) if self._plain is not None else None
        if found is None or found.lastindex is None:
            return None
        name, is_batch = self._forms[found.lastindex - 1]
        inner = found[found.lastindex]
        if is_batch:
            ids = _decode_strings(b"[%b]" % inner)
            if len(ids) > self._max_ids or len(set(ids)) < len(ids) or not all(map(self._is_id, ids)):
                return None
            return BodyRead(tuple(ids), {}, _encode({name: ids}))
        product_id = inner.decode("ascii")
        if not self._is_id(product_id):
            return None
        return BodyRead((product_id,), {}, b'{"%b":"%b"}' % (name.encode("ascii"), inner))

    def _read_strictly(self, raw: bytes) -> BodyRead:
        document = read_document(raw)
        if not isinstance(document, dict):
            raise BodyMalformed(f"The body must be an object, not {kind(document)}.")
        self._root.names.refuse_variants(document, "")
        taking = Taking(self._is_id, self._max_ids)
        understood = taking.take_members(self._root, document, "") if self._root.members else {}
        members = {name: self._extra(name, document[name]) for name in self._extras if name in document}
        return BodyRead(tuple(taking.at), members, _encode(understood | members))

    def _extra(self, name: str, value: Any) -> Any:
        where = step("", name)
        if name in self._id_extras:
            if not isinstance(value, str):
                raise BodyMalformed(f"{where} must be a string, not {kind(value)}.")
            if not self._is_id(value):
                raise BodyMalformed(f"{where} is not an id: its characters or its length are not allowed.")
        elif (place := inexact(value, where)) is not None:
            raise BodyMalformed(f"{place} is an integer that parsers read differently: send it as a string.")
        return value


def _check_media(content_type: str | None, content_encoding: str | None) -> None:
    if content_encoding is not None and content_encoding.lower() != "identity":
        raise MediaTypeUnsupported("Content-Encoding is not supported here: send the body as it is.")
    if content_type is None or not _JSON_TYPE.fullmatch(content_type):
        raise MediaTypeUnsupported("Content-Type must be application/json, in UTF-8.")


def _plain_forms(pointers: tuple[str, ...]) -> tuple[re.Pattern[bytes] | None, list[tuple[str, bool]]]:
    """A pattern for `{"name":"id"}` and `{"name":["id",...]}`, with one group for each pointer of that form,
    and what each group stands for: the member's name, and whether it is a batch."""
    forms: list[tuple[str, bool]] = []
    alternatives: list[bytes] = []
    for path in map(tokens, pointers):
        if not _SIMPLE_NAME.fullmatch(path[0]) or path[1:] not in ((), ("*",)):
            continue
        forms.append((path[0], len(path) == 2))
        member = b'"%b"%b:%b' % (path[0].encode("ascii"), _SPACE, _SPACE)
        if len(path) == 1:
            alternatives.append(b'%b"(%b)"' % (member, _PLAIN))
        else:
            more = b'(?:%b,%b"%b")*+' % (_SPACE, _SPACE, _PLAIN)
            alternatives.append(b'%b\\[%b("%b"%b)%b\\]' % (member, _SPACE, _PLAIN, more, _SPACE))
    if not forms:
        return None, []
    either = b"|".join(alternatives)
    return re.compile(b"%b\\{%b(?:%b)%b\\}%b" % (_SPACE, _SPACE, either, _SPACE, _SPACE)), forms


def _problems(route: Route) -> Iterable[tuple[str, str]]:
    """Why a route's bodies could not be read in one way only: key and problem."""
    for index, pointer in enumerate(route.product_ids):
        if problem := pointer_problem(pointer):
            yield f"product_ids[{index}]", problem
    if route.method in _WITHOUT_BODY and (route.product_ids or route.extra_members):
        yield "method", f"{route.method} carries no body, so product_ids and extra_members must be empty"
    firsts = {fold(tokens(pointer)[0]) for pointer in route.product_ids if tokens(pointer)}
    for index, name in enumerate(route.extra_members):
        if fold(name) in firsts:
            yield f"extra_members[{index}]", "is named by product_ids already"
        elif len(name) > MAX_NAME_CHARS:
            yield f"extra_members[{index}]", f"must have at most {MAX_NAME_CHARS} characters"
