"""Each decision stands in the journal, with what it was decided by; no request waits for that, and a room's clients see
only what is theirs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.admission import notes
from gateway.admission.decision import Decision
from gateway.config import Ledger
from gateway.ledger.lines import line_of
from gateway.ledger.steps import bucket_of
from gateway.ledger.streams import Note, Streams
from gateway.policy.model import Surface
from tests.admission.world import HOLD_SECONDS, Line, World, until
from tests.listener.test_live import following

FLAGSHIP, CREATOR = "shop-flagship", "creator-li"


async def lines(world: World) -> list[dict[str, Any]]:
    """All that the streams hold, once nothing waits to be written."""
    await until(lambda: not any(len(gateway._notes) for gateway in world.gateways))
    found = []
    async for key in world.redis.scan_iter("ag:*:e"):
        bucket = int(key.decode().split("{")[1].split("}")[0])
        for identifier, fields in await world.redis.xrange(key):
            texts = {name.decode(): value.decode() for name, value in fields.items()}
            found.append(json.loads(line_of(bucket, identifier.decode(), texts)))
    return sorted(found, key=lambda line: tuple(map(int, line["id"].split("-"))))


async def decisions(world: World) -> list[dict[str, Any]]:
    return [line for line in await lines(world) if line["type"] == "decision"]


async def test_each_kind_of_decision_is_there(world: World) -> None:
    await world.session("creators", CREATOR)
    await world.session("flagships", FLAGSHIP)
    answers = [
        await world.attach("own-individual-1"),
        await world.attach("ally-1", session="creators", account=CREATOR),
        await world.attach("ally-1", "own-flagship-1", session="flagships", account=FLAGSHIP),
        await world.attach("ally-1", session="creators"),
        await world.ask("POST", "/accounts/shop-individual/showcase/products", {"product_id": "ally-1"}),
        await world.ask("POST", f"/accounts/{CREATOR}/videos/v/products", {"product_id": "ally-1"}, account=CREATOR),
        await world.attach("no-such-product"),
        *[await world.attach(f"ally-{n}") for n in (1, 2, 3, 4)],
    ]
    world.fault("error")
    answers.append(await world.attach("own-individual-2"))
    found = {line["decision_id"]: line for line in await decisions(world)}
    told = [found.pop(answer.headers["Attachgate-Decision"]) for answer in answers]
    assert not found
    assert [(one["verdict"], one["reason"], one["rule"], one["status"]) for one in told] == [
        ("allowed", "", "N3", 200),
        ("allowed", "", "N14", 200),
        ("refused", "foreign_not_allowed", "N1", 0),
        ("refused", "not_session_owner", "N3", 0),
        ("refused", "foreign_not_allowed", "N4", 0),
        ("allowed", "", "N14", 200),
        ("refused", "product_unknown", "N3", 0),
        *[("allowed", "", "N3", 200)] * 3,
        ("refused", "foreign_cap_reached", "N3", 0),
        ("allowed", "", "N3", 500),
    ]
    full = told[-2]
    assert (full["session_id"], full["account_id"], full["surface"]) == ("s1", "shop-individual", "live_room")
    assert (full["products"], full["refused"], full["used"], full["cap"]) == (["ally-4"], ["ally-4"], 3, 3)
    assert full["policy_version"] == answers[-2].body["policy_version"]
    assert ":" in full["gateway"]
    assert told[2]["refused"] == ["ally-1"], "the own product of the request was not"


async def test_who_asks_is_not_known(world: World) -> None:
    assert (await world.ask("POST", "/live/sessions/s1/products", {"product_id": "p"}, account="")).status == 401
    assert await decisions(world) == []


async def test_a_replace_that_is_refused_is_there_too(world: World) -> None:
    await world.attach("ally-1")
    await world.start()
    refused = await world.replace("ally-1", "ally-2")
    line = (await decisions(world))[-1]
    assert line["decision_id"] == refused.headers["Attachgate-Decision"]
    assert (line["operation"], line["reason"], line["account_id"]) == (
        "replace",
        "replace_after_start",
        "shop-individual",
    )


async def test_clients_see_a_refusal_that_no_step_tells_of_and_nothing_else(world: World) -> None:
    await world.session("flagships", FLAGSHIP)
    world.platform.platform.store.attach("s1", ["ally-9"], 0.0)
    async with following(world, "flagships", account=FLAGSHIP) as theirs, following(world) as ours:
        await theirs.begun()
        await ours.begun()
        await world.attach("own-flagship-1", session="flagships", account=FLAGSHIP)
        await world.attach("ally-9", session="flagships")
        await world.attach("ally-1", session="flagships", account=FLAGSHIP)
        name, data = await theirs.event()
        assert (name, data["products"], data["used"], data["cap"]) == ("refused", ["ally-1"], 0, 0)
        await world.attach("own-individual-1")
        for n in (1, 2, 3, 4):
            await world.attach(f"ally-{n}")
            await world.settled()
        assert await ours.names(4) == ["attached", "attached", "refused", "refused"]
    async with following(world, last_id="0-0") as again:
        assert await again.names(4) == ["attached", "attached", "refused", "refused"]


async def test_a_crowd_at_the_door_of_a_full_session_does_not_fill_its_bucket(world: World) -> None:
    """Each decision is in the journal; the room's clients, and all rooms of its bucket, see a few a second."""
    gateway = world.gateways[0]
    waiting = notes.Notes(Streams(gateway._connection, Ledger()), gateway.telemetry)
    crowd = []
    for n in range(100):
        for session_id in ("crowded", "quiet") if n == 50 else ("crowded",):
            decision = Decision("attach", Surface.live_room, "en", 7.5 + (n >= 80))
            decision.session_id = session_id
            waiting.refused(decision, "foreign_cap_reached", ["p"], told=False)
            crowd.append(decision.id)
    await waiting.close()
    found = await lines(world)
    assert sorted(line["decision_id"] for line in found) == sorted(crowd)
    told = [line["session_id"] for line in found if line.get("event") == "refused"]
    assert (told.count("crowded"), told.count("quiet")) == (2 * notes.TOLD_A_SECOND, 1)
    others = [line for line in found if line.get("event") != "refused" and line["bucket"] == bucket_of("crowded")]
    assert len(others) < notes.BATCH_OF_A_BUCKET


async def test_the_streams_stay_capped_and_expire(world: World) -> None:
    streams = Streams(world.gateways[0]._connection, Ledger(stream_entries=16))
    for n in range(20):
        [(_, written)] = streams.write({5: [Note("decision", "", f"op{n}-{k}", b"[]") for k in range(20)]})
        await written
    assert await world.redis.xlen("ag:{5}:e") < 150
    assert await world.redis.pttl("ag:{5}:e") > 0


async def test_no_bucket_gets_more_than_its_share_of_a_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = world.gateways[0]
    shares: list[dict[int, int]] = []
    write = Streams.write

    def watched(streams: Streams, batch: dict[int, list[Note]]) -> Any:
        shares.append({bucket: len(found) for bucket, found in batch.items()})
        return write(streams, batch)

    monkeypatch.setattr(Streams, "write", watched)
    waiting = notes.Notes(Streams(gateway._connection, Ledger()), gateway.telemetry)
    rooms, surfaces = [], []
    for n in range(600):
        decision = Decision("attach", Surface.live_room, "en", float(n))
        decision.session_id = None if n % 6 == 5 else "one room"
        if n % 2:
            waiting.refused(decision, "foreign_not_allowed", ["p"], told=False)
        else:
            waiting.allowed(decision, 200)
        (rooms if n % 2 and decision.session_id else surfaces).append(decision.id)
    await waiting.close()
    assert max(max(share.values()) for share in shares) == notes.BATCH_OF_A_BUCKET
    assert max(sum(share.values()) for share in shares) <= notes.BATCH
    found = await lines(world)
    told = [line for line in found if line.get("event") == "refused"]
    assert {line["bucket"] for line in told} == {bucket_of("one room")}
    assert [line["decision_id"] for line in told] == rooms, "in the order in which they were decided"
    assert sorted(line["decision_id"] for line in found if "event" not in line) == sorted(surfaces)

    shares.clear()
    for n in range(notes.BATCH):
        waiting.allowed(Decision("attach", Surface.live_room, "en", float(n)), 200)
    await waiting.close()
    full = [notes.BATCH_OF_A_BUCKET] * (notes.BATCH // notes.BATCH_OF_A_BUCKET)
    assert [list(share.values()) for share in shares] == [full], "the next bucket takes more"


async def test_while_redis_is_away_decisions_wait_and_then_are_dropped_and_counted(
    bare: World, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "MAX_WAITING", 3)
    gateway = await bare.gateway(ledger=Ledger(line.url, timeout_seconds=0.3, hold_seconds=HOLD_SECONDS))
    await bare.session("creators", CREATOR)
    await line.down()
    with capture_logs() as logs:
        for n in range(8):
            answer = await bare.attach(f"ally-{n + 1}", session="creators", account=CREATOR)
            assert answer.status == 200
        assert len(gateway._notes) == 3
        await line.up()
        found = await lines(bare)
    assert [line["products"] for line in found if line["type"] == "decision"] == [["ally-1"], ["ally-2"], ["ally-3"]]
    gaps = [line for line in found if line["type"] == "gap"]
    assert [(gap["reason"], gap["count"]) for gap in gaps] == [("dropped", 5)]
    assert b"attachgate_journal_dropped_total 5.0" in gateway.telemetry.exposition()[0]
    assert [line["event"] for line in logs].count("journal_full") == 1


async def test_what_waits_is_written_when_the_gateway_ends(bare: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "FLUSH_SECONDS", 60.0)
    gateway = await bare.gateway()
    await bare.session()
    await bare.attach("own-individual-1")
    assert len(gateway._notes) == 1
    await bare.gateways.pop().close()
    assert [line["products"] for line in await decisions(bare)] == [["own-individual-1"]]
