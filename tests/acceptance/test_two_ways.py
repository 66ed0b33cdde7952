"""The same bytes, by the fast lane and by aiohttp: the same answer, and the same for the upstream.

Two worlds get the same requests in the same order; in one of them nothing is recognised, so all goes through aiohttp.
"""

from __future__ import annotations

import asyncio
import gc
import random
import re
import weakref
from typing import Any

from gateway.proxy.fast import FastLane, PlainIncoming
from tests.acceptance.conftest import World, Worlds

SEED = 20261124
REQUESTS = 400

_VOLATILE = re.compile(
    rb'"decision_id":"[^"]*"|"since":"[^"]*"|\d\d-\d\d \d\d:\d\d:\d\d'
    rb"|(?<=\r\n)(?:Date|Attachgate-Decision|Content-Length|RateLimit(?:-Policy)?): [^\r]*\r\n"
)

LINES = (
    b"POST /live/sessions/s1/products HTTP/1.1",
    b"POST /live/sessions/s1/products HTTP/1.1",
    b"POST /live/sessions/s1/products?trace=1 HTTP/1.1",
    b"POST /live/sessions/s1/products/ HTTP/1.1",
    b"POST /live/sessions/%73%31/products HTTP/1.1",
    b"POST /live//sessions/s1/products HTTP/1.1",
    b"POST /live/sessions/./s1/products HTTP/1.1",
    b"POST /live/sessions/unknown/products HTTP/1.1",
    b"POST /accounts/shop-individual/showcase/products HTTP/1.1",
    b"POST /accounts/shop-mall/showcase/products HTTP/1.1",
    b"POST /LIVE/sessions/s1/products HTTP/1.1",
    b"POST /live/sessions/s1/products HTTP/1.0",
)
HEADERS = (
    b"X-Account-Id: shop-mall",
    b"x-account-id: shop-individual",
    b"X_Account_Id: shop-mall",
    b"Accept-Language: en",
    b"Accept-Language: zh-Hant",
    b"Connection: keep-alive",
    b"Connection: X-Account-Id",
    b"X-Odd:  two spaces",
    b"X-Odd:none",
    b"X-Odd: trailing ",
    b"X-Empty:",
    b"X-High: \xc3\xa9",
    b"Content-Type: text/plain",
    b"Content-Encoding: gzip",
    b"Expect: 100-continue",
    b"Forwarded: for=1.2.3.4",
    b"X-Forwarded-For: 1.2.3.4",
    b"X-HTTP-Method-Override: DELETE",
    b"Transfer-Encoding: chunked",
    b"Content-Length: 5",
)
BODIES = (
    *(b'{"product_id":"ally-%d"}' % number for number in range(1, 7)),
    b'{"product_id":"own-individual-1"}',
    b'{"product_ids":["ally-1","own-individual-2"]}',
    b'{ "product_id" : "ally-1" }',
    b'{"product_id":"ally-1","product_id":"ally-2"}',
    b'{"product_\\u0069d":"ally-1"}',
    b'{"product_id":1}',
    b"\xef\xbb\xbf{}",
    b"",
)


def requests() -> list[bytes]:
    """Mostly plain ones, the others with something odd in them."""
    chance = random.Random(SEED)
    made = []
    for _ in range(REQUESTS):
        body = chance.choice(BODIES)
        lines = [chance.choice(LINES), b"Host: gateway", b"X-Account-Id: shop-individual"]
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
        for _ in range(chance.choice((0, 0, 0, 1, 2))):
            lines.insert(chance.randint(1, len(lines)), chance.choice(HEADERS))
        made.append(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    return made


async def exchange(world: World, request: bytes) -> bytes:
    """The answer to one request on a connection of its own, which the client ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateways[0].port)
    writer.write(request)
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
    writer.close()
    return head + body


def told(answer: bytes) -> tuple[bytes, list[bytes], bytes]:
    """What both ways must agree on: status, header fields in any order, body."""
    head, _, body = _VOLATILE.sub(b"", answer).partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    return status, sorted(field.lower() for field in fields), body


async def test_both_ways_give_the_same_answer_and_the_same_to_the_upstream(worlds: Worlds) -> None:
    fast, slow = await worlds(), await worlds()
    lane: Any = slow.gateways[0]._listener.fast
    lane.recognise = lambda *_: None
    recognised = 0
    original = FastLane.recognise

    def counting(self: FastLane, *arguments: Any) -> PlainIncoming | None:
        nonlocal recognised
        plain = original(self, *arguments)
        recognised += plain is not None
        return plain

    fast.gateways[0]._listener.fast.recognise = counting.__get__(fast.gateways[0]._listener.fast)  # type: ignore[method-assign]
    body = {"account_id": "shop-individual", "session_id": "s1"}
    for world in (fast, slow):
        assert (await world.ask("POST", "/live/sessions", body, "shop-individual")).status == 201
    for request in requests():
        one, other = await exchange(fast, request), await exchange(slow, request)
        assert told(one) == told(other), request
    assert await fast.applied("s1") == await slow.applied("s1")
    assert REQUESTS / 10 < recognised < REQUESTS * 0.9


async def test_what_requests_were_read_as_goes_with_the_rules(worlds: Worlds) -> None:
    """At once, and not when the collector comes: after a few reloads that would be several full memories."""
    gateway = (await worlds()).gateways[0]
    lane: Any = gateway._listener.fast
    body = b'{"product_id":"ally-1"}'
    head = b"POST /live/sessions/s1/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: shop-individual\r\n"
    request = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    assert lane.recognise(request, "127.0.0.1", "http") is not None
    before = weakref.ref(lane._reading.match)
    gc.disable()
    try:
        gateway.reload(gateway.config, gateway._gate.verdicts.policy)
        assert lane.recognise(request, "127.0.0.1", "http") is not None
        assert before() is None
    finally:
        gc.enable()
