"""What the steps leave in Redis: little, for a time, and once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.config import Ledger as LedgerConfig
from gateway.ledger import embedded, steps
from gateway.ledger.connection import connect
from gateway.ledger.steps import Ledger, Step, bucket_of
from gateway.policy.model import SessionState

SESSION = "session-of-24-characters"
PRODUCTS = [f"376512345678901234{n}" for n in range(8)]


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    redis = await embedded.start()
    connection = connect(redis.url, 2.0, asyncio.get_running_loop().time)
    ledger = Ledger(connection, LedgerConfig(), 30)
    await ledger.adopt(SESSION, "open", "", SessionState.preparing, ())
    yield ledger
    await connection.close()
    await redis.close()


def session_key(ledger: Ledger) -> str:
    return ledger.pending_key(bucket_of(SESSION))[:-1] + f"s:{SESSION}"


async def attach(ledger: Ledger, operation: str, *products: str) -> str:
    said = (await ledger.reserve(SESSION, operation, 3, products)).said
    if said == "held":
        await ledger.commit(SESSION, operation, "attached", [Step("t", product) for product in products])
    return said


async def events(ledger: Ledger) -> list[str]:
    return [fields["e"] for _, fields in await ledger.events(bucket_of(SESSION), "0-0", 100)]


async def test_a_session_of_three_products_takes_at_most_300_bytes_after_all_that_happens_to_it(
    ledger: Ledger,
) -> None:
    await attach(ledger, "a" * 14, *PRODUCTS[:3])
    contenders = [f"c{number:013}" for number in range(64)]
    await asyncio.gather(*(ledger.reserve(SESSION, op, 3, PRODUCTS[:1]) for op in contenders))
    await asyncio.gather(*(ledger.release(SESSION, op, 1) for op in contenders))
    await ledger.reserve(SESSION, "b" * 14, None, [f"37651234567890{number:05}" for number in range(100)])
    await ledger.release(SESSION, "b" * 14, 100)
    preparing = SessionState.preparing
    await ledger.replace(SESSION, "r" * 14, 3, preparing, PRODUCTS[0], PRODUCTS[3], foreign=True)
    steps = [Step("g", PRODUCTS[0]), Step("t", PRODUCTS[3])]
    await ledger.commit(SESSION, "r" * 14, "replaced", steps, preparing)
    snapshot = await ledger.snapshot(SESSION)
    assert snapshot is not None
    assert {slot.product_id for slot in snapshot.slots} == set(PRODUCTS[1:4])
    used = await ledger._connection.command("MEMORY", "USAGE", session_key(ledger))
    assert used <= 300


async def test_a_session_of_many_products_is_read_and_not_kept_in_memory(ledger: Ledger) -> None:
    products = [f"product-{number:03}" for number in range(300)]
    await ledger.reserve(SESSION, "o1", None, products)
    before = steps._remembered.cache_info().currsize
    for _ in range(2):
        snapshot = await ledger.snapshot(SESSION)
        assert snapshot is not None
        assert {slot.product_id for slot in snapshot.slots} == set(products)
    assert steps._remembered.cache_info().currsize == before


async def test_a_session_of_few_products_is_read_once(ledger: Ledger) -> None:
    await attach(ledger, "o1", *PRODUCTS[:3])
    assert await ledger.snapshot(SESSION) is await ledger.snapshot(SESSION)


async def test_every_key_expires(ledger: Ledger) -> None:
    await ledger.reserve(SESSION, "o1", 3, PRODUCTS[:1])
    await ledger.reserve(SESSION, "o2", 0, PRODUCTS[1:2])
    keys = await ledger._connection.command("KEYS", "*")
    assert len(keys) == 3
    for key in keys:
        assert await ledger._connection.command("PTTL", key.decode()) > 0


async def test_a_repeated_step_changes_nothing(ledger: Ledger) -> None:
    for _ in range(2):
        assert (await ledger.reserve(SESSION, "o1", 3, PRODUCTS[:2])).used == 2
    for _ in range(2):
        await ledger.commit(SESSION, "o1", "attached", [Step("t", product) for product in PRODUCTS[:2]])
    for _ in range(2):
        assert (await ledger.start(SESSION, "o2", 3)).said == "asked"
    for _ in range(2):
        await ledger.commit(SESSION, "o2", "started", [Step("s")])
    for _ in range(2):
        await ledger.end(SESSION, "o3")
    assert await events(ledger) == ["attached", "started", "ended"]
    snapshot = await ledger.snapshot(SESSION)
    assert snapshot is not None
    assert (snapshot.used, snapshot.records, snapshot.state) == (2, {}, SessionState.ended)


async def test_a_refusal_changes_nothing_and_is_an_event(ledger: Ledger) -> None:
    await attach(ledger, "o1", *PRODUCTS[:3])
    before = await ledger.snapshot(SESSION)
    assert await attach(ledger, "o2", PRODUCTS[0], PRODUCTS[3]) == "full"
    assert await ledger.snapshot(SESSION) == before
    assert await events(ledger) == ["attached", "refused"]


async def test_scripts_that_redis_has_forgotten_are_sent_again(ledger: Ledger) -> None:
    await ledger._connection.command("SCRIPT", "FLUSH")
    assert await attach(ledger, "o1", PRODUCTS[0]) == "held"


async def test_what_is_adopted_from_an_old_list_is_not_believed(ledger: Ledger) -> None:
    before = await ledger.snapshot(SESSION)
    assert before is not None
    await attach(ledger, "o1", PRODUCTS[0])
    answer = await ledger.adopt(SESSION, "o2", before.version, SessionState.preparing, PRODUCTS[1:3])
    assert answer.said == "changed"
