"""What the contract shows to the outside: routes, statuses, fields, headers, the view, and what goes on while parts
fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from gateway.ledger import embedded
from tests.acceptance.conftest import Answer, World, Worlds, eventually

ATTACH = "/live/sessions/{}/products"


def assert_problem(answer: Answer, status: int, reason: str) -> None:
    assert (answer.status, answer.reason) == (status, reason), answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "decision_id"} <= set(answer.body)
    assert answer.headers["Attachgate-Decision"] == answer.body["decision_id"]


async def test_every_field_of_a_refusal(world: World) -> None:
    room = await world.room()
    await room.attach("ally-1", "ally-2")
    refused = await room.attach("own-individual-1", "ally-1", "ally-3", "ally-4")
    assert_problem(refused, 403, "foreign_cap_reached")
    body = refused.body
    assert (body["surface"], body["session_id"], body["policy_version"]) == ("live_room", room.session, "2026-07")
    assert (body["cap"], body["used"], body["remaining"]) == (3, 2, 1)
    verdicts = {row["product_id"]: (row["verdict"], row.get("reason")) for row in body["products"]}
    assert verdicts == {
        "own-individual-1": ("allowed", None),
        "ally-1": ("allowed", None),
        "ally-3": ("refused", "foreign_cap_reached"),
        "ally-4": ("refused", "foreign_cap_reached"),
    }
    assert refused.slots == {"ally-1": True, "ally-2": True}
    assert all(slot["since"].endswith("Z") for slot in body["slots"])
    assert all(entry["title"] and entry["notice"] for entry in body["help"])
    assert await room.listed() == ["ally-1", "ally-2"]


async def test_rate_limit_headers_on_every_answer_of_an_attach_route(world: World) -> None:
    room = await world.room()
    for product, remaining in (("own-individual-1", 3), ("ally-1", 2), ("ally-2", 1), ("ally-1", 1), ("ally-3", 0)):
        answer = await room.attach(product)
        assert answer.status == 200
        assert answer.headers["RateLimit-Policy"] == '"foreign";q=3'
        assert answer.headers["RateLimit"] == f'"foreign";r={remaining}'
        assert answer.headers["Attachgate-Decision"]
    answer = await room.attach("ally-4")
    assert answer.headers["RateLimit"] == '"foreign";r=0'
    showcase = await room.ask("POST", "/accounts/shop-individual/showcase/products", {"product_id": "ally-1"})
    assert (showcase.headers["RateLimit-Policy"], showcase.headers["RateLimit"]) == (
        '"foreign";q=0',
        '"foreign";r=0',
    )


async def test_who_is_asking(worlds: Worlds) -> None:
    world = await worlds()
    room = await world.room()
    path = ATTACH.format(room.session)
    body = {"product_id": "ally-1"}
    missing = await world.ask("POST", path, body)
    assert_problem(missing, 401, "identity_missing")
    assert "WWW-Authenticate" in missing.headers
    assert_problem(await world.ask("POST", path, body, "a b"), 401, "identity_invalid")
    assert_problem(await world.ask("POST", path, body, "shop-enterprise"), 403, "not_session_owner")
    other = await world.ask("POST", "/accounts/shop-mall/showcase/products", body, "shop-individual")
    assert_problem(other, 403, "not_account_owner")
    other = await world.ask("GET", "/accounts/shop-mall/showcase/addable", account="shop-individual")
    assert_problem(other, 403, "not_account_owner")
    create = await world.ask("POST", "/live/sessions", {"account_id": "shop-mall"}, "shop-individual")
    assert_problem(create, 403, "not_account_owner")
    assert_problem(
        await world.ask("GET", f"/_gateway/sessions/{room.session}", account="shop-mall"), 403, "not_session_owner"
    )
    distrustful = await worlds(more='[identity]\ntrusted_peers = ["10.0.0.0/8"]')
    assert_problem(await distrustful.ask("POST", path, body, "shop-individual"), 401, "identity_invalid")


async def test_what_is_unknown(world: World) -> None:
    room = await world.room()
    invented = await world.ask("POST", ATTACH.format("invented"), {"product_id": "ally-1"}, "shop-individual")
    assert_problem(invented, 404, "session_unknown")
    assert_problem(await room.attach("no-such-product"), 404, "product_unknown")
    assert_problem(await room.attach("ally-1", "no-such-product"), 404, "product_unknown")
    create = await world.ask("POST", "/live/sessions", {"account_id": "nobody"}, "nobody")
    assert_problem(create, 404, "account_unknown")
    assert await world.applied(room.session) == []


async def test_an_ended_session_takes_nothing_and_its_id_brings_no_fresh_count(world: World) -> None:
    room = await world.room()
    await room.attach("ally-1")
    assert (await room.end()).status == 200
    assert_problem(await room.attach("ally-2"), 409, "session_ended")
    again = await world.ask(
        "POST", "/live/sessions", {"account_id": room.account, "session_id": room.session}, room.account
    )
    assert again.status == 409
    assert_problem(await room.attach("ally-2"), 409, "session_ended")


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b'{"product_id":"ally-1"', {}, 400, "body_malformed"),
        (b'{"product_id":"a","product_id":"b"}', {}, 400, "body_malformed"),
        (b'{"product_id":1}', {}, 400, "body_malformed"),
        (b"{}", {}, 400, "body_malformed"),
        (b'{"product_ids":[]}', {}, 400, "body_malformed"),
        (b'{"product_id":"a","product_ids":["b"]}', {}, 400, "body_malformed"),
        (b'{"product_id":"ally-1"}', {"Content-Type": "text/plain"}, 415, "media_type_unsupported"),
        (b'{"product_id":"ally-1"}', {"Content-Encoding": "gzip"}, 415, "media_type_unsupported"),
        (b'{"product_id":"' + b"a" * 300_000 + b'"}', {}, 413, "body_too_large"),
        (b'{"product_id":"ally-1"}', {"X-Long": "a" * 17_000}, 431, "headers_too_large"),
    ],
)
async def test_bodies_that_are_refused(
    world: World, body: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    room = await world.room()
    named = {"X-Account-Id": room.account, "Content-Type": "application/json", **headers}
    url = world.url + ATTACH.format(room.session)
    async with world.http.post(url, data=body, headers=named) as response:
        answer = Answer(response.status, response.headers, json.loads(await response.read()), b"")
    assert_problem(answer, status, reason)
    assert await world.applied(room.session) == []


async def test_a_body_without_a_length(world: World) -> None:
    room = await world.room()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateways[0].port)
    writer.write(
        b"POST /live/sessions/%b/products HTTP/1.1\r\nHost: h\r\nX-Account-Id: shop-individual\r\n"
        b"Content-Type: application/json\r\n\r\n" % room.session.encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 411 ")


async def test_an_upstream_that_is_away(world: World) -> None:
    room = await world.room()
    await room.attach("own-individual-1")
    await world.fault("attach", "timeout")
    assert_problem(await room.attach("ally-2"), 504, "upstream_timeout")
    await world.well()
    await world.upstream.close()
    assert_problem(await room.attach("own-individual-1"), 502, "upstream_unreachable")
    answer = await world.ask("GET", "/misc/echo")
    assert_problem(answer, 502, "upstream_unreachable")


@pytest.mark.parametrize(
    ("mode", "status", "applied"),
    [
        ("error", 500, False),
        ("timeout", 504, False),
        ("apply_then_drop", 502, True),
        ("apply_then_error", 500, True),
        ("drop_then_apply_late", 502, True),
    ],
)
async def test_in_doubt_keeps_its_slot_until_the_list_has_said(
    world: World, mode: str, status: int, applied: bool
) -> None:
    room = await world.room()
    await room.attach("ally-1", "ally-2")
    await world.fault("attach", mode, delay_ms=300)
    assert (await room.attach("ally-3")).status == status
    await world.well()
    view = await room.view()
    assert (view.body["used"], view.body["remaining"]) == (3, 0)
    assert [slot["product_id"] for slot in view.body["slots"] if slot["in_doubt"]] == ["ally-3"]
    assert (await room.attach("ally-4")).reason == "foreign_cap_reached"

    def settled(view: Answer) -> bool:
        return not any(slot["in_doubt"] for slot in view.body["slots"])

    view = await eventually(room.view, settled)
    assert view.body["used"] == (3 if applied else 2)
    assert (await room.attach("ally-4")).status == (403 if applied else 200)
    assert len(set(await world.applied(room.session))) == 3


async def test_what_the_upstream_refuses_gives_its_slot_back(world: World) -> None:
    room = await world.room()
    await world.fault("attach", "refuse")
    answer = await room.attach("ally-1")
    assert (answer.status, answer.headers["RateLimit"]) == (422, '"foreign";r=3')
    await world.well()
    assert (await room.view()).body["used"] == 0


async def test_of_a_batch_only_what_was_applied_is_committed(world: World) -> None:
    room = await world.room()
    await world.fault("attach", "partial")
    answer = await room.attach("ally-1", "ally-2")
    assert (answer.status, answer.body["attached"]) == (200, ["ally-1"])
    await world.well()
    assert (await room.view()).slots == {"ally-1": True}
    assert (await room.attach("ally-3", "ally-4")).status == 200


async def test_the_view_of_a_session(world: World) -> None:
    room = await world.room()
    await room.attach("ally-1")
    view = (await room.view()).body
    assert {name: view[name] for name in ("session_id", "account_id", "state", "cap", "used", "remaining")} == {
        "session_id": room.session,
        "account_id": "shop-individual",
        "state": "preparing",
        "cap": 3,
        "used": 1,
        "remaining": 2,
    }
    await room.start()
    assert (await room.view()).body["state"] == "live"
    creator = await world.room("creator-li")
    view = (await creator.view()).body
    assert (view["cap"], view["remaining"], view["slots"]) == (None, None, [])


async def test_events_in_order_and_resumed_without_loss_or_repeat(world: World) -> None:
    room = await world.room()
    await room.attach("ally-1")
    await room.replace("ally-1", "ally-2")
    await room.detach("ally-2")
    await room.attach("ally-3", "ally-4", "ally-5")
    await room.attach("ally-6")
    await room.start()
    await world.fault("attach", "apply_then_drop")
    await room.attach("ally-3")
    await world.well()
    await eventually(room.view, lambda view: not any(slot["in_doubt"] for slot in view.body["slots"]))
    await room.end()
    expected = ["attached", "replaced", "detached", "attached", "refused", "started", "in_doubt", "settled", "ended"]
    events = await read_events(room, "0-0", len(expected))
    assert [event["event"] for _, event in events] == expected
    ids = [identifier for identifier, _ in events]
    rest = await read_events(room, ids[3], len(expected) - 4)
    assert [identifier for identifier, _ in rest] == ids[4:]


async def read_events(room: Any, after: str, count: int) -> list[tuple[str, dict[str, Any]]]:
    url = f"{room.world.url}/_gateway/sessions/{room.session}/events"
    headers = {"X-Account-Id": room.account, "Last-Event-ID": after}
    found = []
    async with asyncio.timeout(10), room.world.http.get(url, headers=headers) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        while len(found) < count:
            fields = {}
            while (line := (await response.content.readline()).decode().rstrip("\n")) != "":
                name, _, value = line.partition(": ")
                fields[name] = value
            if "data" in fields:
                found.append((fields["id"], json.loads(fields["data"])))
    return found


async def test_while_redis_is_down_only_what_needs_a_count_is_refused(worlds: Worlds) -> None:
    redis = await embedded.start()
    world = await worlds(redis=redis.url)
    room, professional = await world.room(), await world.room("shop-flagship")
    creator, excepted = await world.room("creator-li"), await world.room("shop-crossborder")
    await room.attach("ally-1")
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        for _ in range(4):
            answer = await room.attach("ally-2")
            assert_problem(answer, 503, "ledger_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        assert (await room.attach("own-individual-1")).status == 200
        assert (await creator.attach("ally-1", "ally-2", "ally-3", "ally-4")).status == 200
        assert (await professional.attach("ally-1")).reason == "foreign_not_allowed"
        assert (await excepted.attach("ally-1", "ally-2", "ally-3", "ally-4")).status == 200
        ready = await world.ask("GET", f"{world.gateways[0].admin_url}/readyz")
        assert ready.status == 503
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    await eventually(excepted.view, lambda view: view.status == 200 and view.body["used"] == 4)
    await eventually(lambda: room.attach("ally-2"), lambda answer: answer.status == 200)
    view = await eventually(room.view, lambda view: not any(slot["in_doubt"] for slot in view.body["slots"]))
    assert view.slots == {"ally-1": True, "ally-2": True}
    await redis.close()


async def test_health_and_metrics(world: World) -> None:
    room = await world.room()
    await room.attach("ally-1")
    await (await world.room("shop-flagship")).attach("ally-1")
    admin = world.gateways[0].admin_url
    assert (await world.ask("GET", f"{admin}/healthz")).status == 200
    assert (await world.ask("GET", f"{admin}/readyz")).status == 200
    metrics = (await world.ask("GET", f"{admin}/metrics")).raw.decode()
    assert 'attachgate_decisions_total{rule="N3",surface="live_room",verdict="allowed"} 1.0' in metrics
    assert 'attachgate_decisions_total{rule="N1",surface="live_room",verdict="refused"} 1.0' in metrics
    assert "attachgate_request_seconds_bucket" in metrics


async def test_everything_else_passes_through_as_it_came(world: World) -> None:
    echo = await world.ask("GET", "/misc/echo?a=%20b+c&&d=%2Fe")
    assert echo.body["target"].endswith("?a=%20b+c&&d=%2Fe")
    assert (await world.ask("GET", "/misc/redirect")).status == 302
    zipped = await world.ask("GET", "/misc/gzip", Accept_Encoding="gzip")
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert zipped.raw[:2] == b"\x1f\x8b"
    assert len((await world.ask("GET", "/misc/bytes/5000000")).raw) == 5_000_000


async def test_two_gateways_agree(worlds: Worlds) -> None:
    world = await worlds(2)
    room = await world.room()
    first, second = world.gateways
    for gateway, product in ((first, "ally-1"), (second, "ally-2"), (first, "ally-3")):
        path = f"{gateway.url}{ATTACH.format(room.session)}"
        assert (await world.ask("POST", path, {"product_id": product}, room.account)).status == 200
    path = f"{second.url}{ATTACH.format(room.session)}"
    assert (await world.ask("POST", path, {"product_id": "ally-4"}, room.account)).status == 403
