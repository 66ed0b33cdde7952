"""What must hold of the pure readers for any bytes at all: only the gateway's own errors come out, and what was
understood has one reading.

One function for two fuzzers: Hypothesis in `make test`, and a coverage-guided one (`fuzz_readers.py`). The first byte
chooses the reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gateway.config import DEFAULT_ROUTES, Limits
from gateway.errors import GatewayError
from gateway.reading.address import read_target
from gateway.reading.body import BodyReader, applied_ids
from gateway.reading.client import client_address, network_of
from gateway.reading.headers import HeaderReader, forwarding
from gateway.reading.routes import Matcher
from gateway.reading.spelling import id_check
from gateway.refusals import language, refuse_error
from gateway.refusals.document import encode

_MATCHER = Matcher(DEFAULT_ROUTES, Limits())
_BODIES = BodyReader(DEFAULT_ROUTES, Limits())
_HEADERS = HeaderReader("X-Account-Id")
_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "post", "CONNECT")
_WITH_BODY = tuple(route for route in DEFAULT_ROUTES if route.product_ids or route.extra_members)
_TYPES = ("application/json", "application/json; charset=utf-8", "text/plain", "application/json;charset=utf-7")
_IS_ID = id_check(Limits().id_pattern)


def check(data: bytes) -> None:
    """Raises AssertionError where a promise is broken; anything else that comes out is a finding, too."""
    if data:
        _READERS[data[0] % len(_READERS)](data[1:])


def _address(data: bytes) -> None:
    method = _METHODS[data[0] % len(_METHODS)] if data else "GET"
    target = data[1:].decode("utf-8", "surrogateescape")
    try:
        address = read_target(target, method=method)
    except GatewayError as error:
        _can_be_told(error)
        return
    assert address.path_raw + address.query_raw == target
    again = read_target(address.canonical, method=method)
    assert (again.segments, again.canonical) == (address.segments, address.canonical)
    assert not {"", ".", ".."} & set(address.segments[:-1])
    assert not any(char in segment for segment in address.segments for char in "/\\\0;?#")
    try:
        match = _MATCHER.match(method, address, has_body=bool(data and data[0] & 64))
    except GatewayError as error:
        _can_be_told(error)
        return
    if match is not None:
        assert match.route.method == method
        assert all(map(_IS_ID, match.params.values()))
        assert match.path == address.canonical


def _headers(data: bytes) -> None:
    lines = data.split(b"\n")
    pairs = [(name, value) for line in lines for name, _, value in [line.partition(b":")]]
    version = (1, len(data) % 2)
    try:
        headers = _HEADERS.read([(b"Host", b"gateway"), *pairs], version)
    except GatewayError as error:
        _can_be_told(error)
        return
    names = {name.lower().replace(b"_", b"-") for name, _ in headers.forward + headers.content}
    assert not names & {b"x-account-id", b"host", b"transfer-encoding", b"content-length", b"connection", b"upgrade"}
    assert not (headers.chunked and headers.length is not None)
    assert b"\r" not in b"".join(part for pair in headers.forward for part in pair)
    forwarding("127.0.0.1", "http", headers)
    hops = len(data) % 4
    assert network_of(client_address("127.0.0.1", headers.forwarded_for, hops))
    language(data.decode("latin-1"))


def _body(data: bytes) -> None:
    first = data[0] if data else 0
    route = _WITH_BODY[first % len(_WITH_BODY)]
    raw = data[1:]
    try:
        read = _BODIES.of(route).read(raw, _TYPES[first // 16 % len(_TYPES) if first > 127 else 0], None)
    except GatewayError as error:
        _can_be_told(error)
        return
    assert all(map(_IS_ID, read.product_ids))
    assert len(set(read.product_ids)) == len(read.product_ids)
    members = {pointer.split("/")[1] for pointer in route.product_ids}
    for keep in (dict, _first_wins):
        written = json.loads(read.canonical, object_pairs_hook=keep)
        assert _named(written, members) == read.product_ids
        assert set(written) <= {*members, *route.extra_members}
    assert _named(json.loads(raw), members) == read.product_ids, "an ordinary parser reads other products"
    again = _BODIES.of(route).read(read.canonical, "application/json", None)
    assert (again.product_ids, again.canonical) == (read.product_ids, read.canonical)


def _answer(data: bytes) -> None:
    found = applied_ids(data, "/attached/*")
    assert found is None or all(isinstance(product_id, str) for product_id in found)


def _named(document: dict[str, Any], members: set[str]) -> tuple[str, ...]:
    found = [document[name] for name in ("product_id", "product_ids") if name in document and name in members]
    return tuple(found[0] if isinstance(found[0], list) else found) if found else ()


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _can_be_told(error: GatewayError) -> None:
    """An answer can be made of it, short and safe to log."""
    document = encode(refuse_error(error, language="zh-CN", decision_id="d"))
    assert len(document) < 4096
    assert b"\n" not in document
    assert error.detail.isprintable()


_READERS: tuple[Callable[[bytes], None], ...] = (_address, _headers, _body, _answer)

SEEDS = (
    b"\0\1/live/sessions/s-1/products",
    b"\0\1/live/sessions/s%2d1/products?trace=1",
    b"\0\3/accounts/a/showcase/products?_method=PUT",
    b"\0\0/%E4%B8%AD/x+y/(S(x))/..",
    b"\1Content-Length: 23\nX-Account-Id: a\nConnection: close, X\nVia: 1.1 x\nExpect: 100-continue",
    b"\1Transfer-Encoding: chunked\nX_Account_Id: b\nX-Forwarded-For: 1.2.3.4:80, [::1]:9",
    b'\2\2{"product_id":"ally-9"}',
    b'\2\2{"product_ids":["ally-9","\\u0061lly-8"],"x":{"y":[1.5,true,null]}}',
    b'\2\0{"account_id":"a","session_id":"s","title":"\\ud83d\\ude00"}',
    b'\3{"attached":["ally-9"]}',
)
"""One of each form, for a fuzzer to begin with."""
