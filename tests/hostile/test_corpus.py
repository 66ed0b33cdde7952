"""Nobody walks around the gateway: what the ledger counted is what the upstream applied, whoever reads the request.

Each entry of the corpus goes over a real socket to a real gateway process with a real Redis, once with the reference
platform behind it and once with each of the lenient readings. The status is not the judge. It is

    what the ledger counts of the session  =  what the upstream applied to it, and nothing that the rules forbid,

and then that each got a precise refusal or a correct service, that nothing more than the answers came back, and that
the gateway still stands.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from .conftest import CAP, PROFESSIONAL, SHOP, Site, used_by, view_of
from .entries import Entry, fill, load, values
from .lenient import READINGS, Lenient, Reading
from .raw import Garbled, Reply, Talk, Wire, talk

pytestmark = pytest.mark.asyncio(loop_scope="module")

CORPUS = load()
ENTRIES = [entry for entries in CORPUS.values() for entry in entries]
AT_ONCE = 16
FIRST_THREE = ("ally-1", "ally-2", "ally-3")
CLOSING = frozenset(("headers_malformed", "headers_too_large", "body_too_large"))
"""Reasons after which nothing more is believed of a connection."""


@dataclass
class Found:
    """What one entry came to; `faults` is empty where all is well."""

    faults: list[str] = field(default_factory=list)
    talk: Talk | None = None


Spare = dict[tuple[str, str], list[str]]
"""Sessions that an entry has left as they were, by account and kind: the next one may have them."""


async def run(site: Site, entry: Entry, spare: Spare, *, check_service: bool) -> Found:
    found = Found()
    try:
        await _run(site, entry, found, spare, check_service)
    except (Garbled, TimeoutError, AssertionError) as error:
        found.faults.append(f"{type(error).__name__}: {error}")
    return found


async def _run(site: Site, entry: Entry, found: Found, spare: Spare, check_service: bool) -> None:
    before = len(products_before(entry))
    kind = (entry.account, entry.session)
    session_id = spare[kind].pop() if spare.get(kind) else await prepared(site, entry)
    sent_as = values(session_id, entry.account, others_session(site, entry))
    writes = [fill(text, sent_as) for text in entry.send]
    asks_last = check_service and entry.session != "none" and entry.source == "127.0.0.1"
    answers = 0 if entry.unanswered else entry.answers
    told = found.talk = await talk(
        site.gateway.port,
        writes,
        max(1, answers),
        source=entry.source,
        method=entry.method,
        last_words=view_of(session_id, entry.account) if asks_last else b"",
    )
    if entry.session != "none":
        counted, applied = await site.agree(session_id)
        if counted != applied:
            found.faults.append(f"the ledger counts {sorted(counted)}, the upstream applied {sorted(applied)}")
        if check_service and len(applied) != before + entry.more:
            found.faults.append(f"{before} products were there, now {sorted(applied)}")
    found.faults += judged(entry, told, check_service)
    if entry.refused and not entry.before and not found.faults:
        spare.setdefault(kind, []).append(session_id)


def products_before(entry: Entry) -> Sequence[str]:
    return FIRST_THREE if entry.session in ("full", "new_full") and entry.account == SHOP else ()


async def prepared(site: Site, entry: Entry) -> str:
    """A session as the entry wants it, known to the ledger through the gateway."""
    if entry.session == "none":
        return f"unknown-{entry.name}"
    session_id = site.new_session(entry.account, "s")
    if entry.session in ("full", "room"):
        site.upstream.store.start(session_id, 0.0)
    products = products_before(entry)
    reply = await (
        site.attach(session_id, entry.account, products) if products else site.view(session_id, entry.account)
    )
    assert reply.status == 200, reply
    return session_id


def others_session(site: Site, entry: Entry) -> str:
    if not any("{O}" in text for text in entry.send):
        return ""
    return site.new_session(PROFESSIONAL if entry.account == SHOP else SHOP, "o")


def judged(entry: Entry, told: Talk, check_service: bool) -> list[str]:
    """What is wrong with the answers."""
    faults = []
    replies = list(told.replies)
    if entry.unanswered:
        return [f"answered with {replies[0].status}"] if replies else []
    if len(replies) < entry.answers:
        return [f"only {len(replies)} of {entry.answers} answers came"]
    if len(replies) > entry.answers:
        faults += _not_the_view(replies.pop())
    last = replies[-1]
    statuses = [reply.status for reply in replies[:-1]]
    if check_service and statuses != list(entry.before):
        faults.append(f"before the last answer came {statuses}, expected {list(entry.before)}")
    if entry.refused:
        faults += _not_refused(entry, last, told)
    elif check_service and last.status not in entry.served:
        faults.append(f"answered {last.status} {last.body[:200]!r}, expected one of {entry.served}")
    return faults


def _not_the_view(reply: Reply) -> list[str]:
    """The last words are answered by the session's view: were anything else taken for a request, it would not be."""
    if reply.status == 200 and b'"session_id"' in reply.body:
        return []
    return [f"something was left in the connection: {reply.status} {reply.body[:200]!r}"]


def _not_refused(entry: Entry, reply: Reply, told: Talk) -> list[str]:
    if reply.status not in entry.refused:
        return [f"answered {reply.status} {reply.body[:200]!r}, expected one of {entry.refused}"]
    if reply.field("content-type") != "application/problem+json":
        return [f"not a problem document but {reply.field('content-type')}"]
    if entry.method == "HEAD":
        return []
    problem: dict[str, Any] = json.loads(reply.body)
    faults = []
    if problem["reason"] not in entry.because:
        faults.append(f"because {problem['reason']} ({problem['detail']}), expected one of {entry.because}")
    if problem["status"] != reply.status or not problem["detail"] or not problem["decision_id"]:
        faults.append(f"an incomplete problem document: {problem}")
    if problem["reason"] in CLOSING and not told.ended:
        faults.append("the connection is still open")
    return faults


async def run_all(site: Site, entries: Sequence[Entry], *, check_service: bool) -> dict[str, Found]:
    gate = asyncio.Semaphore(AT_ONCE)
    spare: Spare = {}

    async def one(entry: Entry) -> Found:
        async with gate:
            return await run(site, entry, spare, check_service=check_service)

    return dict(zip([e.name for e in entries], await asyncio.gather(*map(one, entries)), strict=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def results(strict: Site) -> AsyncIterator[dict[str, Found]]:
    yield await run_all(strict, ENTRIES, check_service=True)


async def test_the_corpus_is_large_enough() -> None:
    assert len(ENTRIES) >= 250


@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES])
async def test_before_the_reference_platform(results: dict[str, Found], name: str) -> None:
    assert results[name].faults == []


async def test_nothing_over_the_rules_was_applied_and_the_gateway_stands(strict: Site, results: Site) -> None:
    assert strict.breaches() == []
    assert strict.gateway.runs
    assert [line for line in strict.gateway.lines() if line.get("level") in ("error", "critical")] == []


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.name)
async def test_before_a_lenient_upstream(lenient: Site, reading: Reading) -> None:
    upstream = lenient.upstream
    assert isinstance(upstream, Lenient)
    upstream.reading = reading
    found = await run_all(lenient, ENTRIES, check_service=False)
    assert {name: result.faults for name, result in found.items() if result.faults} == {}
    assert upstream.as_others == []
    assert lenient.breaches() == []
    assert lenient.gateway.runs


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(strict: Site) -> None:
    """RFC 9110 section 10.1.1; and who is refused anyway is not asked."""
    session_id = strict.new_session(SHOP, "waits")
    head = (
        b"POST /live/sessions/%b/products HTTP/1.1\r\nHost: gateway\r\n%bContent-Type: application/json\r\n"
        b"Content-Length: 23\r\nExpect: 100-continue\r\n\r\n"
    )
    wire = await Wire.open(strict.gateway.port)
    await wire.send(head % (session_id.encode(), b"X-Account-Id: shop-individual\r\n"))
    assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await wire.send(b'{"product_id":"ally-9"}')
    reply = await wire.reply()
    assert reply is not None
    assert reply.status == 200
    wire.close()

    wire = await Wire.open(strict.gateway.port)
    await wire.send(head % (session_id.encode(), b""))
    reply = await wire.reply()
    assert reply is not None
    assert (reply.status, wire.interim) == (401, 0)
    wire.close()


@pytest.mark.parametrize(
    ("pieces", "kept"),
    [
        ((b"17\r\n", b'{"product_id":"ally-9"}', b"\r\n", b"0\r\n\r\n"), True),
        ((b'17\r\n{"product_id":"ally-9"}\r\n0\r\n', b"\r\n"), True),
        ((b'17\r\n{"product_id":"ally-9"}\r\n0\r\n\r\n',), True),
        ((b'17\r\n{"product_id":"ally-9"}\r\n0\r\n', b"X-Account-Id: shop-flagship\r\n\r\n"), False),
        ((b'17\r\n{"product_id":"ally-9"}\r\n0\r\nX: ', b"0\r\n\r\n"), False),
    ],
)
async def test_a_connection_is_kept_behind_chunks_and_ended_behind_trailers(
    strict: Site, pieces: tuple[bytes, ...], kept: bool
) -> None:
    """aiohttp takes a request's last trailer for the first field of the next request."""
    session_id = strict.new_session(SHOP, "chunks")
    wire = await Wire.open(strict.gateway.port)
    await wire.send(
        b"POST /live/sessions/%b/products HTTP/1.1\r\nHost: gateway\r\nX-Account-Id: shop-individual\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" % session_id.encode()
    )
    for piece in pieces:
        await wire.send(piece)
        await asyncio.sleep(0.01)  # So that each mostly arrives by itself; the outcome is the same where it does not.
    first = await wire.reply()
    assert first is not None
    assert first.status == 200
    await wire.send(view_of(session_id, SHOP))
    second = await wire.reply("GET")
    wire.close()
    assert (second is not None and second.status == 200) is kept


async def test_without_the_gateway_the_corpus_does_harm() -> None:
    """The same bytes, sent to the lenient upstreams straight: what would be worth nothing if it were harmless there."""
    harmful: set[str] = set()
    for reading in (READINGS[0], READINGS[-1]):
        upstream = Lenient()
        upstream.reading = reading
        await upstream.start()
        gate = asyncio.Semaphore(AT_ONCE)
        try:
            tried = [_alone(upstream, entry, f"{number}", gate) for number, entry in enumerate(ENTRIES)]
            harmful |= {e.name for e, harm in zip(ENTRIES, await asyncio.gather(*tried), strict=True) if harm}
        finally:
            await upstream.close()
    refused = {entry.name for entry in ENTRIES if entry.refused or entry.unanswered}
    assert len(harmful & refused) >= 250


async def _alone(upstream: Lenient, entry: Entry, label: str, gate: asyncio.Semaphore) -> bool:
    """Whether the entry attaches a product that is one too many, or does so in another's name."""
    session_id, others = f"s-{label}", f"o-{label}"
    store = upstream.store
    store.create(session_id, entry.account, time.time())
    store.create(others, PROFESSIONAL, time.time())
    if entry.account == SHOP:
        store.attach(session_id, list(FIRST_THREE), time.time())
    store.start(session_id, time.time())
    writes = [fill(text, values(session_id, entry.account, others)) for text in entry.send]
    async with gate:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", upstream.port))
        for data in writes:
            await wire.send(data)
        wire.writer.write_eof()
        async with asyncio.timeout(5):
            while await wire.reader.read(65536):
                pass
        wire.close()
    mine = [e for e in store.entries() if e.session_id == session_id]
    theirs = [e for e in store.entries() if e.session_id == others and e.operation == "attach"]
    cap = CAP if entry.account == SHOP else 0
    return len(used_by(mine)) > cap or bool(theirs) or any(entry.name in note for note in upstream.as_others)
