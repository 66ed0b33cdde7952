"""What the worst bodies cost to read: deep, wide, colliding, quadratic. The work is linear in the few bytes."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from gateway.config import DEFAULT_ROUTES, Limits
from gateway.errors import GatewayError
from gateway.reading.body import BodyReader

BODY_SECONDS = 0.5
"""What the worst body of 256 KB may take to read, on one core of a busy machine."""


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 262_144,
        b'{"a":' * 50_000 + b"1" + b"}" * 12_144,
        b'{"product_id":"ally-9","x":' + b"9" * 262_000 + b"}",
        b'{"product_id":"ally-9","x":[' + b"1," * 131_000 + b"1]}",
        b'{"product_ids":[' + b'"a",' * 65_000 + b'"b"]}',
        b'{"product_id":"' + b"\\u0061" * 43_000 + b'"}',
        b'{"product_id":"' + b"a" * 262_000 + b'"}',
        b'{"product_id":"ally-9",' + b",".join(b'"%x":0' % (n * 61 * 2**32) for n in range(9000)) + b"}",
        ('{"product_id":"ally-9","' + "e\u0301" * 85_000 + '":1}').encode(),
        ('{"product_id":"ally-9",' + ",".join(f'"{"́" * 60}{n}":1' for n in range(1500)) + "}").encode(),
        b'{"product_id":"ally-9","x":"' + b"\\" * 262_000 + b'"}',
        b" " * 262_000 + b"{}",
        b'{"product_id":"ally-9","x":1e' + b"9" * 262_000 + b"}",
    ],
    ids=lambda body: f"{body[:16]!r}",
)
def test_no_body_takes_long_to_read(body: bytes) -> None:
    """Deep, wide, colliding, quadratic: the work is linear in the bytes, with a bound on them."""
    route = next(route for route in DEFAULT_ROUTES if route.operation == "attach")
    reader = BodyReader(DEFAULT_ROUTES, Limits())
    took = []
    for _ in range(3):
        began = time.perf_counter()
        with suppress(GatewayError):
            reader.of(route).read(body, "application/json", None)
        took.append(time.perf_counter() - began)
    assert min(took) < BODY_SECONDS
