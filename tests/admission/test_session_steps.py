"""Detach, replace, start and end: when a slot comes back, and when it does not any more."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest

from gateway.admission import session as steps
from gateway.config import Directory
from gateway.policy.model import Account, Kind, SessionState, Shop, ShopType
from tests.admission.world import ACCOUNT, World, until


async def fill(world: World, *products: str) -> None:
    for product in products:
        assert (await world.attach(product)).status == 200
    await world.settled()


async def test_before_the_start_a_slot_comes_back(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    assert (await world.detach("ally-1")).status == 204
    await world.settled()
    assert await world.used() == {"ally-2", "ally-3"}
    assert (await world.attach("ally-4")).status == 200


async def test_after_it_it_does_not(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    assert (await world.start()).status == 200
    assert (await world.detach("ally-1")).status == 204
    await world.settled()
    assert await world.used() == {"ally-1", "ally-2", "ally-3"}
    refused = await world.attach("ally-4")
    assert (refused.status, refused.reason) == (403, "foreign_cap_reached")
    assert [(slot["product_id"], slot["attached"]) for slot in refused.body["slots"]] == [
        ("ally-1", False),
        ("ally-2", True),
        ("ally-3", True),
    ]
    assert (await world.attach("ally-1")).status == 200, "the same product may come back"


async def test_nor_where_somebody_started_it_past_the_gateway(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    world.platform.platform.store.start("s1", 0.0)
    assert (await world.detach("ally-1")).status == 204
    await world.settled()
    assert await world.used() == {"ally-1", "ally-2", "ally-3"}


async def test_a_start_between_a_detachs_answer_and_the_look_at_the_session(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    gateway = world.gateways[0]
    fresh = gateway._directory.fresh_session

    async def started_first(session_id: str) -> Any:
        world.platform.platform.store.start(session_id, 0.0)
        return await fresh(session_id)

    gateway._directory.fresh_session = started_first  # type: ignore[method-assign]
    assert (await world.detach("ally-1")).status == 204
    await world.settled()
    assert await world.used() == {"ally-1", "ally-2", "ally-3"}


async def test_a_look_at_the_session_that_fails_leaves_it_to_the_reconciler(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    world.fault("error", "directory")
    assert (await world.detach("ally-1")).status == 204
    await until(lambda: len(world.gateways[0]._settlements.tasks) == 0)
    assert await world.used() == {"ally-1", "ally-2", "ally-3"}
    world.no_faults()
    await world.settled()
    assert await world.used() == {"ally-2", "ally-3"}


@pytest.mark.parametrize("status", [404, 500, "silence"])
async def test_a_detach_without_a_clear_answer_is_settled_by_the_list(world: World, status: int | str) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    if status == 404:
        world.platform.platform.store.detach("s1", "ally-1", 0.0)
    else:
        world.fault("apply_then_error" if status == 500 else "apply_then_drop", "detach")
    await world.detach("ally-1")
    world.no_faults()
    assert await world.used() == {"ally-1", "ally-2", "ally-3"}
    await world.settled()
    assert await world.used() == {"ally-2", "ally-3"}


async def test_tidying_up_after_a_time_out_costs_no_place_once_live(world: World) -> None:
    """Neither the attach was applied nor its detach, and the list never shows either."""
    world.fault("timeout")
    await world.attach("ally-1")
    world.no_faults()
    assert (await world.detach("ally-1")).status == 404
    assert (await world.start()).status == 200
    await world.settled()
    assert await world.used() == set()


async def test_an_own_product_is_detached_without_a_look(world: World) -> None:
    await world.attach("own-individual-1")
    await world.attach("ally-1")
    records = world.gateways[0]._directory.session_records
    asked = records.misses
    assert (await world.detach("own-individual-1")).status == 204
    await world.settled()
    assert records.misses == asked


async def test_a_creators_detach_needs_no_ledger(world: World) -> None:
    await world.session("free", "creator-li")
    await world.attach("ally-1", session="free", account="creator-li")
    assert (await world.detach("ally-1", session="free", account="creator-li")).status == 204
    assert await world.snapshot("free") is None


# Replace


async def test_before_the_start_a_place_passes_on(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    assert (await world.replace("ally-1", "ally-4")).status == 200
    await world.settled()
    assert await world.used() == {"ally-2", "ally-3", "ally-4"} == world.listed()


async def test_live_it_does_not(world: World) -> None:
    await fill(world, "ally-1", "ally-2")
    await world.start()
    said = await world.replace("ally-1", "ally-4")
    assert (said.status, said.reason, said.body["rule"]) == (403, "replace_after_start", "N6")
    world.platform.platform.store.detach("s1", "ally-2", 0.0)
    assert (await world.replace("ally-1", "ally-2")).status == 200, "one that has its place already needs no other"
    assert (await world.replace("ally-2", "own-individual-1")).status == 200


async def test_nor_where_somebody_started_it_past_the_gateway_unseen(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    world.platform.platform.store.start("s1", 0.0)
    assert (await world.replace("ally-1", "ally-4")).reason == "replace_after_start"


async def test_where_no_foreign_product_may_be_none_can_take_a_place(world: World) -> None:
    await world.session("pro", "shop-flagship")
    await world.attach("own-flagship-1", session="pro", account="shop-flagship")
    said = await world.replace("own-flagship-1", "ally-1", session="pro", account="shop-flagship")
    assert (said.status, said.reason) == (403, "foreign_not_allowed")
    assert world.listed("pro") == {"own-flagship-1"}


@pytest.mark.parametrize("mode", ["refuse", "error", "timeout", "apply_then_drop", "apply_then_error"])
async def test_whatever_becomes_of_a_replace_there_are_three(world: World, mode: str) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    world.fault(mode, "replace")
    await world.replace("ally-1", "ally-4")
    world.no_faults()
    assert (await world.attach("ally-5")).status == 403
    await world.settled()
    assert await world.used() == world.listed()
    assert len(world.listed()) == 3


async def test_a_product_that_is_replaced_by_itself(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    assert (await world.replace("ally-1", "ally-1")).status == 200
    await world.settled()
    assert await world.used() == world.listed() == {"ally-1", "ally-2", "ally-3"}


async def test_own_for_foreign_gives_the_place_back(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    assert (await world.replace("ally-1", "own-individual-1")).status == 200
    await world.settled()
    assert await world.used() == {"ally-2", "ally-3"}


# Start and end


async def test_a_start_waits_for_a_place_that_is_lent(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    world.fault("slow", "replace", delay_ms=120)
    replacing = asyncio.ensure_future(world.replace("ally-1", "ally-4"))
    await until(lambda: "ally-4" in world.listed())
    assert (await world.start()).status == 200
    assert replacing.done()
    await world.settled()
    assert await world.used() == {"ally-2", "ally-3", "ally-4"}


async def test_and_not_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "START_WAIT_SECONDS", 0.05)
    await fill(world, "ally-1", "ally-2", "ally-3")
    world.fault("timeout", "replace")
    replacing = asyncio.ensure_future(world.replace("ally-1", "ally-4"))
    await until(lambda: len(world.gateways[0]._opening.on_their_way) == 1)
    said = await world.start()
    assert (said.status, said.reason, said.headers["Retry-After"]) == (503, "session_unsettled", "2")
    assert world.upstream_session().state is SessionState.preparing
    await replacing
    await world.settled()
    world.no_faults()
    assert (await world.start()).status == 200


async def test_a_start_waits_for_what_has_left(world: World) -> None:
    """The upstream has said yes to the detach, and nobody could look whether the session was still preparing."""
    await fill(world, "ally-1", "ally-2", "ally-3")
    world.fault("error", "directory")
    assert (await world.detach("ally-1")).status == 204
    starting = asyncio.ensure_future(world.start())
    done, _ = await asyncio.wait({starting}, timeout=0.3)
    assert not done
    world.no_faults()
    assert (await starting).status == 200
    await world.settled()
    assert await world.used() == {"ally-2", "ally-3"}


async def test_also_at_another_gateway_and_where_redis_has_not_been_told(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    other = await world.gateway()
    ledger: Any = world.gateways[0]._gate.ledger
    commit, told = ledger.commit, asyncio.Event()

    async def late(*arguments: Any) -> Any:
        await told.wait()
        return await commit(*arguments)

    ledger.commit = late
    assert (await world.detach("ally-1")).status == 204
    starting = asyncio.ensure_future(world.start(at=other))
    done, _ = await asyncio.wait({starting}, timeout=0.3)
    assert not done
    told.set()
    assert (await starting).status == 200
    await world.settled()
    assert await world.used() == {"ally-2", "ally-3"}


async def test_but_not_for_ever_and_not_where_nobody_answered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    world.fault("apply_then_drop", "detach")
    assert (await world.detach("ally-1")).status == 502
    world.no_faults()
    began = asyncio.get_running_loop().time()
    assert (await world.start("s1")).status == 200
    assert asyncio.get_running_loop().time() < began + steps.START_WAIT_SECONDS
    monkeypatch.setattr(steps, "START_WAIT_SECONDS", 0.2)
    await world.session("s2")
    assert (await world.attach("ally-1", session="s2")).status == 200
    world.fault("error", "directory")
    assert (await world.detach("ally-1", session="s2")).status == 204
    assert (await world.start("s2")).status == 200
    world.no_faults()
    await world.settled("s2")
    assert await world.used("s2") == {"ally-1"}


async def test_a_start_without_an_answer_counts_as_one(world: World) -> None:
    await fill(world, "ally-1", "ally-2", "ally-3")
    world.fault("timeout", "start")
    assert (await world.start()).status == 504
    world.no_faults()
    assert (await world.detach("ally-1")).status == 204
    snapshot = await world.snapshot()
    assert snapshot is not None
    assert snapshot.used == 3, "it may be live: its slot comes back when that is known"
    await world.settled()
    assert await world.used() == {"ally-2", "ally-3"}


async def test_after_the_end_nothing_is_attached(world: World) -> None:
    await fill(world, "ally-1")
    assert (await world.ask("POST", "/live/sessions/s1/end")).status == 200
    await world.settled()
    said = await world.attach("ally-2")
    assert (said.status, said.reason) == (409, "session_ended")
    world.gateways[0]._directory.forget_session("s1")
    assert (await world.attach("ally-2")).reason == "session_ended"


async def test_the_end_of_a_session_that_the_ledger_does_not_have(world: World) -> None:
    assert (await world.ask("POST", "/live/sessions/s1/end")).status == 200
    await world.settled()
    assert await world.snapshot() is None


async def test_create_opens_the_ledger_and_only_for_oneself(world: World) -> None:
    said = await world.ask("POST", "/live/sessions", {"account_id": ACCOUNT, "session_id": "new"})
    assert said.status == 201
    await until(lambda: len(world.gateways[0]._settlements.tasks) == 0)
    assert await world.used("new") == set()
    refused = await world.ask("POST", "/live/sessions", {"account_id": "creator-li"})
    assert refused.reason == "not_account_owner"
    assert (await world.ask("POST", "/live/sessions", {"session_id": "x"})).reason == "body_malformed"


# The client leaves


@pytest.mark.parametrize("mode", ["slow", "timeout", "error"])
async def test_a_client_that_leaves_in_the_middle_loses_no_settlement(world: World, mode: str) -> None:
    world.fault(mode, delay_ms=100)
    gateway = world.gateways[0]
    body = json.dumps({"product_id": "ally-1"}).encode()
    for extra in (b"", b"X-Odd: \xff\r\n"):  # the fast lane, and aiohttp's way
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(
            b"POST /live/sessions/s1/products HTTP/1.1\r\nHost: x\r\nX-Account-Id: shop-individual\r\n"
            b"Content-Type: application/json\r\n" + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        await until(lambda: len(gateway._opening.on_their_way) == 1)
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
        await world.settled()
        assert await world.used() == world.listed()


async def test_a_directory_that_is_never_believed_is_asked_each_time(bare: World) -> None:
    await bare.session()
    await bare.gateway(directory=Directory(ttl_seconds=0, negative_ttl_seconds=0, stale_if_error_seconds=0))
    await fill(bare, "ally-1", "ally-2")
    store = bare.platform.platform.store
    store.upsert(Account(ACCOUNT, Kind.official, shop=Shop("individual", ShopType.flagship)))
    assert (await bare.attach("ally-3")).reason == "foreign_not_allowed"
    store.upsert(Account(ACCOUNT, Kind.official, shop=Shop("individual", ShopType.individual)))
    answer = await bare.attach("own-individual-1")
    assert (answer.status, answer.headers["RateLimit"]) == (200, '"foreign";r=1')
    assert (await bare.start()).status == 200
    assert (await bare.attach("ally-3")).status == 200
    assert (await bare.attach("ally-4")).reason == "foreign_cap_reached"
