"""What must hold of `[[routes]]` besides the types: a route that could never match, that names no product, or
whose session nobody could tell would leave requests unjudged, so it is refused at start."""

from __future__ import annotations

import re

import msgspec

from gateway.config.structs import Route
from gateway.config.tables import Findings, shown, suggestion

PLACEHOLDERS = ("session_id", "product_id", "account_id", "video_id")
MAX_ROUTES = 256
MAX_NAME_CHARS = 64
MAX_POINTER_PARTS = 8
_PLACEHOLDER = re.compile(r"\{([^{}/]*)\}")
_LITERAL = re.compile(r"[A-Za-z0-9._~!$&'()*+,=:@-]+")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Z-]+")
_OF_ONE_PRODUCT = ("detach", "replace")
_ALWAYS_READ = {"create": ("session_id", "account_id")}
_WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "CONNECT")


def check(routes: tuple[Route, ...], client_prefix: str, findings: Findings) -> None:
    if not routes and not findings.has("routes"):
        findings.add("routes", "an empty list would enforce nothing; leave it out to get the default routes")
    if len(routes) > MAX_ROUTES:
        findings.add("routes", f"expected at most {MAX_ROUTES}, got {len(routes)}")
        return
    sound: list[tuple[int, Route]] = []
    for index, route in enumerate(routes):
        key = f"routes[{index}]"
        _check_method(route, key, findings)
        _check_path(route, client_prefix, key, findings)
        _check_pointers(route, key, findings)
        _check_answers(route, key, findings)
        if not findings.has(f"{key}.operation", f"{key}.path", f"{key}.surface"):
            _check_needs(route, key, findings)
        if not findings.has(f"{key}.method", f"{key}.path"):
            _check_overlap(route, sound, key, findings)
            sound.append((index, route))


def completed(route: Route) -> Route:
    """The route with what its operation reads of a body in any case: whose session a create makes, and its id."""
    needed = _ALWAYS_READ.get(route.operation, ())
    extra = tuple(dict.fromkeys((*needed, *route.extra_members)))
    return route if extra == route.extra_members else msgspec.structs.replace(route, extra_members=extra)


def pointer_problem(pointer: str) -> str | None:
    """What is wrong with a JSON pointer (RFC 6901) in which `*` stands for each element, or None."""
    if not pointer.startswith("/"):
        return 'a JSON pointer starts with "/", as in "/product_ids/*"'
    if re.search(r"~(?![01])", pointer):
        return 'in a JSON pointer "~" is written "~0" (and "/" in a name "~1")'
    parts = pointer.split("/")[1:]
    if any("*" in part and part != "*" for part in parts):
        return '"*" must be a whole segment of a JSON pointer, as in "/product_ids/*"'
    if parts[0] in ("*", ""):
        return "must start with the name of a member: bodies and answers are objects"
    if len(parts) > MAX_POINTER_PARTS or any(len(part) > MAX_NAME_CHARS for part in parts):
        return f"expected at most {MAX_POINTER_PARTS} segments of at most {MAX_NAME_CHARS} characters"
    return None


def _check_overlap(route: Route, earlier: list[tuple[int, Route]], key: str, findings: Findings) -> None:
    """Two routes that one request could be for: which of them judges it would be a matter of luck."""
    parts = route.path.split("/")
    for index, other in earlier:
        others = other.path.split("/")
        if (
            route.method == other.method
            and len(parts) == len(others)
            and all(a == b or "{" in (a[:1], b[:1]) for a, b in zip(parts, others, strict=True))
        ):
            problem = f"claims requests that routes[{index}] claims as well (the same method and path shape)"
            findings.add(f"{key}.path", f"{problem}; remove one, or make their literal segments differ")
            return


def _check_method(route: Route, key: str, findings: Findings) -> None:
    if findings.has(f"{key}.method"):
        return
    if not _METHOD.fullmatch(route.method):
        upper = route.method.upper()
        hint = f"; write {shown(upper)}" if _METHOD.fullmatch(upper) else ""
        findings.add(f"{key}.method", f"expected an HTTP method in capitals, got {shown(route.method)}{hint}")
    elif (route.product_ids or route.operation in _ALWAYS_READ) and route.method in _WITHOUT_BODY:
        what = "product_ids can't point into it" if route.product_ids else f"{route.operation} could not be read"
        findings.add(f"{key}.method", f"{route.method} carries no body, so {what}; use POST, PUT or PATCH")


def _check_path(route: Route, client_prefix: str, key: str, findings: Findings) -> None:
    place = f"{key}.path"
    if findings.has(place):
        return
    if not route.path.startswith("/"):
        findings.add(place, 'a path starts with "/"')
        return
    if route.path == "/":
        findings.add(place, "the root path can't be a route's; name the path of the operation")
        return
    names: list[str] = []
    segments = route.path.split("/")[1:]
    for segment in segments[:-1] if segments[-1] == "" else segments:
        if match := _PLACEHOLDER.fullmatch(segment):
            names.append(match[1])
        elif "{" in segment or "}" in segment:
            findings.add(
                place,
                f'a placeholder is a whole segment, as in "/{{session_id}}/", but found {shown(segment)}',
            )
        elif len(segment) > MAX_NAME_CHARS:
            findings.add(place, f"each segment has at most {MAX_NAME_CHARS} characters")
        elif not _LITERAL.fullmatch(segment) or segment in (".", ".."):
            findings.add(
                place,
                f"the gateway refuses paths with the segment {shown(segment)}, so this could never match",
            )
    for name in names:
        if name not in PLACEHOLDERS:
            hint = suggestion(name, PLACEHOLDERS) or "; there are " + ", ".join(PLACEHOLDERS)
            findings.add(place, f"unknown placeholder {shown(name)}{hint}")
    for name in sorted({name for name in names if names.count(name) > 1}):
        findings.add(place, f"the placeholder {shown(name)} stands there twice")
    if f"{route.path}/".startswith(client_prefix) and not findings.has("listen.client_prefix"):
        findings.add(place, f"lies under listen.client_prefix ({client_prefix}), which the gateway answers itself")


def _check_pointers(route: Route, key: str, findings: Findings) -> None:
    for index, pointer in enumerate(route.product_ids):
        place = f"{key}.product_ids[{index}]"
        if not findings.has(place) and (problem := pointer_problem(pointer)):
            findings.add(place, problem)
    if route.applied_ids and (problem := pointer_problem(route.applied_ids)):
        findings.add(f"{key}.applied_ids", problem)
    for index, name in enumerate(route.extra_members):
        place = f"{key}.extra_members[{index}]"
        if not findings.has(place) and (not 0 < len(name) <= MAX_NAME_CHARS or "/" in name):
            findings.add(place, f"expected the plain name of a member of the body, got {shown(name)}")


def _check_answers(route: Route, key: str, findings: Findings) -> None:
    for index, status in enumerate(route.already_there):
        place = f"{key}.already_there[{index}]"
        if not findings.has(place) and not 400 <= status <= 499:
            findings.add(place, f"expected a status from 400 to 499, got {status}; a 2xx counts as attached anyway")


def _check_needs(route: Route, key: str, findings: Findings) -> None:
    """What the operation needs in order to be judged."""
    operation, surface = route.operation, route.surface
    named = set(_PLACEHOLDER.findall(route.path))
    elsewhere = surface in ("showcase", "short_video")
    in_room = operation in ("start", "end") or (operation in ("attach", *_OF_ONE_PRODUCT) and not elsewhere)
    if operation == "attach" and not surface:
        findings.add(f"{key}.surface", 'attach needs one: "live_room", "showcase" or "short_video"')
    elif operation == "filter" and surface != "showcase":
        findings.add(f"{key}.surface", 'filter needs "showcase": only its list of products is filtered (N8)')
    elif operation in _OF_ONE_PRODUCT and elsewhere:
        findings.add(
            f"{key}.surface",
            f"{operation} is of the live room only; what adds a product elsewhere is an attach, what removes one "
            "there needs no route",
        )
    elif in_room and "session_id" not in named:
        findings.add(f"{key}.path", f"{operation} in a live room needs the placeholder {{session_id}}")
    if elsewhere and "account_id" not in named:
        findings.add(f"{key}.path", f"the surface {surface} needs the placeholder {{account_id}}")
    if operation in ("attach", "replace") and not route.product_ids and not findings.has(f"{key}.product_ids"):
        findings.add(f"{key}.product_ids", f'{operation} needs pointers to its products, such as ["/product_id"]')
    if operation == "replace" and "product_id" not in named:
        findings.add(f"{key}.path", "replace needs the placeholder {product_id} for the product that goes")
    if operation == "detach" and ("product_id" in named) == bool(route.product_ids):
        problem = "detach needs the placeholder {product_id}, or product_ids where the body names the product, not both"
        findings.add(f"{key}.path", problem)
    for index, pointer in enumerate(route.product_ids if operation in _OF_ONE_PRODUCT else ()):
        if "*" in pointer.split("/"):
            findings.add(
                f"{key}.product_ids[{index}]", f'{operation} is of one product: point to it, as in "/product_id"'
            )
