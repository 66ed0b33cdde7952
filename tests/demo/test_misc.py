"""The plain HTTP zone shows exactly what arrived and sends exactly what a test expects."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Caller


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "OPTIONS", "PROPFIND"])
async def test_echo_shows_the_request_as_it_arrived(call: Caller, method: str) -> None:
    body = gzip.compress(b"not to be decompressed")
    headers = [["hOST", "x"], ["X-Twice", "1"], ["x-twice", "\u00e9"], ["Content-Encoding", "gzip"]]
    headers += [["Content-Length", str(len(body))], ["Connection", "close"]]
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"{method} /misc/echo?a=%2F&b=+ HTTP/1.1\r\n{lines}\r\n"
    answer = await call.raw(head.encode("latin-1") + body)
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
        "method": method,
        "target": "/misc/echo?a=%2F&b=+",
        "version": "1.1",
        "headers": headers,
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }


@pytest.mark.parametrize("query", ["", "?chunked"])
async def test_bytes_come_in_the_length_asked_for(call: Caller, query: str) -> None:
    async with call.http.get(f"{call.running.url}/misc/bytes/200000{query}") as answer:
        assert (answer.content_length is None) == bool(query)
        assert await answer.read() == (bytes(range(256)) * 782)[:200_000]


async def test_an_upload_over_every_limit_is_taken_in(call: Caller) -> None:
    block = bytes(65536)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield block

    status, answer = await call("POST", "/misc/upload", data=body())
    assert (status, answer) == (
        200,
        {"length": 64 * 65536, "sha256": hashlib.sha256(block * 64).hexdigest()},
    )


async def test_redirect_gzip_status_and_slow(call: Caller) -> None:
    url = call.running.url + "/misc"
    async with call.http.get(url + "/redirect", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "/misc/echo?redirected=1")
    async with call.http.get(url + "/gzip") as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert (await answer.json())["compressed"].startswith("attachgate ")
    for code in (200, 204, 304, 404, 418, 503, 599):
        async with call.http.get(f"{url}/status/{code}") as answer:
            assert answer.status == code
    assert await call("GET", "/misc/slow/1") == (200, {"slow_ms": 1})


async def test_events_come_one_by_one(call: Caller) -> None:
    async with call.http.get(call.running.url + "/misc/sse?n=3&interval_ms=1") as answer:
        blocks = [await answer.content.readuntil(b"\n\n") for _ in range(3)]
        assert blocks == [b"id: %d\ndata: event %d\n\n" % (n, n) for n in (1, 2, 3)]
        assert await answer.content.read() == b""
    async with call.http.get(call.running.url + "/misc/sse?n=x") as answer:
        assert answer.status == 400
