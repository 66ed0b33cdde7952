"""A merchant who tries everything at once: every route that a product comes in by, against one session, with every
field and spelling that could make an answer say less, or more, than was done. Whoever wins the race, what the ledger
counts is what the upstream applied, and it is within the rules at every moment.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.ledger import embedded
from gateway.ledger.steps import Ledger

from .conftest import CAP, SHOP, Site, before_lenient
from .lenient import READINGS, Lenient
from .raw import Wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

SESSIONS = 10
CLIENTS = 8
EACH = 4
PRODUCTS = [f"ally-{number}" for number in range(1, 9)]
FIELDS = (
    "",
    "",
    "Accept: application/x-none\r\n",
    "Accept-Encoding: gzip, identity;q=0\r\n",
    "Range: bytes=0-12\r\n",
    "Range: bytes=9999-\r\n",
    "If-None-Match: *\r\n",
    "Prefer: respond-async, return=minimal\r\n",
    "X-HTTP-Method-Override: GET\r\n",
    "Connection: X-Account-Id\r\n",
    "Idempotency-Key: always\r\n",
    "X-Dry-Run: true\r\n",
)


def step(dice: random.Random, session_id: str) -> bytes:
    """One step of the merchant's: attach one or several, replace, detach, start, or put it in the showcase."""
    one, other, third = dice.sample(PRODUCTS, 3)
    room = f"/live/sessions/{session_id}"
    encoded = room.replace("live", "%6cive").replace("sessions", "session%73")
    kinds: list[tuple[str, str, str]] = [
        ("POST", f"{room}/products", f'{{"product_id":"{one}"}}'),
        ("POST", f"{encoded}/products", f'{{"product_id":"{one}"}}'),
        ("POST", f"{room}/products?format=xml", f'{{"product_id":"{one}"}}'),
        ("POST", f"{room}/products", f'{{"product_ids":["{one}","{other}"]}}'),
        ("POST", f"{room}/products", f'{{"product_ids":["{one}","{other}","{third}"]}}'),
        ("PUT", f"{room}/products/{one}", f'{{"product_id":"{other}"}}'),
        ("PUT", f"{room}/products/{other}", f'{{"product_id":"{third}"}}'),
        ("DELETE", f"{room}/products/{one}", ""),
        ("DELETE", f"{room}/products/{other}?dry_run=true", ""),
        ("POST", f"/accounts/{SHOP}/showcase/products", f'{{"product_id":"{one}"}}'),
        ("POST", f"{room}/start", ""),
    ]
    method, target, body = dice.choices(kinds, weights=[4] * (len(kinds) - 1) + [1])[0]
    kind = "Content-Type: application/json\r\n" if body else ""
    length = f"Content-Length: {len(body)}\r\n" if method != "DELETE" else ""
    return (
        f"{method} {target} HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: {SHOP}\r\n"
        f"{kind}{dice.choice(FIELDS)}{length}\r\n{body}"
    ).encode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def haggling(
    redis: embedded.EmbeddedRedis, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """Before the upstream that takes everything, and denies it where the client does not want to know."""
    async with before_lenient(redis, ledger, tmp_path_factory.mktemp("haggling")) as site:
        assert isinstance(site.upstream, Lenient)
        site.upstream.reading = READINGS[-1]
        yield site


async def client(site: Site, session_id: str, seed: str) -> set[int]:
    """The statuses that one of the merchant's clients got for its steps."""
    dice = random.Random(seed)
    statuses = set()
    for _ in range(EACH):
        sent = step(dice, session_id)
        wire = await Wire.open(site.gateway.port)
        await wire.send(sent)
        reply = await wire.reply()
        wire.close()
        assert reply is not None, sent
        statuses.add(reply.status)
    return statuses


async def everything_at_once(site: Site) -> None:
    sessions = [site.new_session(SHOP, "merchant") for _ in range(SESSIONS)]
    seen: set[int] = set()
    for number, session_id in enumerate(sessions):
        clients = (client(site, session_id, f"{number}.{n}") for n in range(CLIENTS))
        seen = seen.union(*await asyncio.gather(*clients))
    assert {200, 204, 403} <= seen
    assert not {status for status in seen if status >= 500}
    found = await asyncio.gather(*map(site.agree, sessions))
    assert [applied - counted for counted, applied in found] == [set()] * SESSIONS
    assert any(len(applied) == CAP for _, applied in found)
    assert site.breaches() == []
    assert site.gateway.runs


async def test_before_the_reference_platform(strict: Site) -> None:
    await everything_at_once(strict)


async def test_before_an_upstream_that_denies_what_it_did(haggling: Site) -> None:
    await everything_at_once(haggling)
