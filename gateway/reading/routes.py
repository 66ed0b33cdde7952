"""Which configured route a request is for, decided so that no spelling of a route reaches the upstream
unjudged.

A request is one of these, in this order:

    its path is a route's, and so is its method         matched, once its ids are ids
    its path is a route's, its method reads (GET, ...)  passes through (a session's own list, for instance),
                                                        but with a body: 400
    its path is a route's, its method any other         405; 400 where only the method's case differs
    its path is nearly a route's, whatever the method   400 (case, trailing slash, look-alikes, `.json`)
    everything else                                     passes through

A path that is a route's may not carry, in its query, a parameter that overrides the method or that repeats
what the path or the body says (`?product_id=`): an upstream may prefer the one to the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any
from urllib.parse import unquote_plus

import msgspec

from gateway.config import Limits, Route
from gateway.errors import AddressMalformed, BodyMalformed, ConfigurationError, MethodNotAllowed, Mistake
from gateway.reading.address import Address
from gateway.reading.pointers import tokens
from gateway.reading.spelling import MAX_NAME_CHARS, IdCheck, fold, fold_segment, id_check

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_READS = frozenset(("GET", "HEAD", "OPTIONS"))
_OVERRIDES = frozenset(("_method", "x-http-method-override", "x-http-method", "x-method-override"))
_SEPARATORS = re.compile(r"[&;]")
_MAX_DECODINGS = 3
_MAX_PARAMETERS = 256

Template = tuple[str | None, ...]
"""A path's segments, None for each placeholder."""
_Pick = Callable[[Sequence[str | None]], Any]


class Match(msgspec.Struct, frozen=True, gc=False):
    """A request of a configured route. `params`: the path's ids by placeholder. `path`: what to forward,
    without the query, which goes on as it came (`Address.query_raw`). `name`: the route's (`route_name`)."""

    route: Route
    params: dict[str, str]
    path: str
    name: str


def route_name(route: Route) -> str:
    """What a route is called where its requests are counted apart from others."""
    return f"{route.method} {route.path}"


class _Compiled:
    """One route: where its ids stand in the path, and which query parameters would contradict it. `ids_elsewhere` are
    the ids that any route's path names: who asks, or for what, is not said in a query either."""

    def __init__(self, route: Route, ids_elsewhere: frozenset[str]) -> None:
        self.route = route
        self.name = route_name(route)
        parts = route.path.split("/")[1:]
        self.template: Template = tuple(None if _PLACEHOLDER.fullmatch(part) else part for part in parts)
        self.ids = tuple((part[1:-1], i) for i, part in enumerate(parts) if self.template[i] is None)
        said = (
            *ids_elsewhere,
            *route.extra_members,
            *(tokens(p)[0] for p in route.product_ids),
        )
        self.said = _OVERRIDES.union(map(fold, said))


class _Shape:
    """All templates of one length whose literals stand at the same positions: one look-up decides."""

    def __init__(self, literal_at: tuple[int, ...], length: int) -> None:
        self.pick = _picker(literal_at)
        self.ends_with_literal = length - 1 in literal_at
        self.routes: dict[Any, dict[str, _Compiled]] = {}


class Matcher:
    """The routes of one configuration. Raises ConfigurationError where two routes claim one request."""

    def __init__(self, routes: Sequence[Route], limits: Limits, *, file: str = "gateway.toml") -> None:
        ids = frozenset(name for route in routes for name in _PLACEHOLDER.findall(route.path))
        compiled = [_Compiled(route, ids) for route in routes]
        mistakes = [Mistake(file, f"routes[{index}].path", problem) for index, problem in _problems(compiled)]
        if mistakes:
            raise ConfigurationError(mistakes)
        self._is_id: IdCheck = id_check(limits.id_pattern)
        self._exact = _shapes((one.template, one) for one in compiled)
        self._near = _shapes((_bare(_folded(one.template)), one) for one in compiled)

    def match(self, method: str, address: Address, *, has_body: bool = False) -> Match | None:
        """The route that a request is for, None where it is for none and may pass.

        Raises AddressMalformed, MethodNotAllowed or BodyMalformed for what may neither be judged as a route nor
        passed on.
        """
        segments = address.segments
        found: list[dict[str, _Compiled]] = []
        for shape in self._exact.get(len(segments), ()):
            methods = shape.routes.get(shape.pick(segments))
            if methods is None or not (segments[-1] or shape.ends_with_literal):
                continue
            compiled = methods.get(method)
            if compiled is not None:
                return self._matched(compiled, address)
            found.append(methods)
        if found:
            _refuse_unless_reading(method, {name for methods in found for name in methods}, address, has_body)
        else:
            self._refuse_near_miss(segments)
        return None

    def _matched(self, compiled: _Compiled, address: Address) -> Match:
        segments = address.segments
        params = {}
        for name, index in compiled.ids:
            value = segments[index]
            if self._is_id(value) is None:
                raise AddressMalformed(
                    f"Segment {index + 1} of the path ({name}) is not an id: its characters or its length are"
                    " not allowed."
                )
            params[name] = value
        if address.query_raw:
            _refuse_parameters(address.query_raw, compiled.said)
        return Match(compiled.route, params, address.canonical, compiled.name)

    def _refuse_near_miss(self, segments: tuple[str, ...]) -> None:
        bare = _bare(segments)
        shapes = self._near.get(len(bare))
        if shapes is None or not bare:
            return
        folded = _folded(bare)
        # Some frameworks take a suffix for a wanted format: `products.json` is `products` to them.
        last = folded[-1] or ""
        spellings = (last, last.partition(".")[0], last.rpartition(".")[0]) if "." in last else (last,)
        for shape in shapes:
            if any(shape.pick((*folded[:-1], spelling)) in shape.routes for spelling in spellings):
                raise AddressMalformed(
                    "The path is nearly that of a known operation (case, a slash or suffix at the end, a "
                    "look-alike letter): spell it exactly."
                )


def _refuse_unless_reading(method: str, allowed: set[str], address: Address, has_body: bool) -> None:
    """A read with a body is none to an upstream that looks for a method, or for products, in it."""
    if method in _READS:
        if has_body:
            raise BodyMalformed("The request has a body, and reading takes none: send it without.")
        if address.query_raw:
            _refuse_parameters(address.query_raw, _OVERRIDES)
        return
    if method.upper() in allowed or method.upper() in _READS:
        raise AddressMalformed("The method must be written in capitals.")
    methods = ", ".join(sorted(allowed))
    raise MethodNotAllowed(f"This method is not for this path; there is {methods}.", methods)


def _refuse_parameters(query_raw: str, refused: frozenset[str]) -> None:
    """Refuse a query that names one of these, however it is encoded, indexed (`name[]`) or spelt."""
    parts = _SEPARATORS.split(query_raw[1:])
    if len(parts) > _MAX_PARAMETERS:
        raise AddressMalformed(f"The query has more than {_MAX_PARAMETERS} parameters: send fewer.")
    for index, part in enumerate(parts):
        name = part.partition("=")[0]
        for _ in range(_MAX_DECODINGS):
            name = unquote_plus(name).partition("=")[0]
        plain = fold(name.partition("[")[0])
        stem = plain.partition(".")[0]
        if not refused.isdisjoint((plain, stem, plain.replace(".", "_").replace(" ", "_"))):
            raise AddressMalformed(
                f"Parameter {index + 1} of the query repeats what the method, the path or the body says: leave it out."
            )


def _picker(literal_at: tuple[int, ...]) -> _Pick:
    """What takes a path's segments at the literals' positions: one string, or a tuple of several."""
    return itemgetter(*literal_at) if literal_at else lambda _: None


def _shapes(templates: Iterable[tuple[Template, _Compiled]]) -> dict[int, tuple[_Shape, ...]]:
    """By number of segments."""
    shapes: dict[tuple[int, tuple[int, ...]], _Shape] = {}
    for template, compiled in templates:
        literal_at = tuple(i for i, part in enumerate(template) if part is not None)
        key = (len(template), literal_at)
        shape = shapes.setdefault(key, _Shape(literal_at, len(template)))
        shape.routes.setdefault(shape.pick(template), {})[compiled.route.method] = compiled
    found: dict[int, tuple[_Shape, ...]] = {}
    for (length, _), shape in shapes.items():
        found[length] = (*found.get(length, ()), shape)
    return found


def _bare(template: Template) -> Template:
    """Without the empty last segment that a trailing slash makes."""
    return template[:-1] if template[-1] == "" else template


def _folded(template: Template) -> Template:
    return tuple(None if part is None else fold_segment(part) for part in template)


def _problems(compiled: list[_Compiled]) -> Iterable[tuple[int, str]]:
    for index, one in enumerate(compiled):
        if not one.route.path.startswith("/") or len(one.template) < 1:
            yield index, "a path starts with a slash"
        if one.template == ("",):
            yield index, "the root path can't be a route's"
        if any(len(part or "") > MAX_NAME_CHARS for part in one.template):
            yield index, f"each part of a path must have at most {MAX_NAME_CHARS} characters"
        for earlier, other in enumerate(compiled[:index]):
            if one.route.method == other.route.method and _overlap(one.template, other.template):
                yield (
                    index,
                    f"claims requests that routes[{earlier}] claims as well: make their literal parts differ",
                )


def _overlap(one: Template, other: Template) -> bool:
    return len(one) == len(other) and all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))
