"""Redis forgets a live session. What was removed since its start counts all the same (N5), where the journal has it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.config import Journal
from gateway.config import Ledger as LedgerConfig
from gateway.export.exporter import Exporter
from gateway.export.output import RotatingFile
from gateway.ledger.streams import Streams
from gateway.serve import Gateway
from tests.admission.world import World, until


class Exporting:
    """An exporter whose file is `journal.jsonl`."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self.output = RotatingFile(folder / "journal.jsonl", 1 << 20, 0)
        self.exporter = Exporter(Streams(gateway._connection, LedgerConfig()), self.output, "export", 0)

    async def all(self) -> None:
        await self.exporter.run(asyncio.Event(), once=True)


async def lived(world: World, *, removed: str = "ally-1") -> None:
    """Three were attached; live, one of them left."""
    for n in (1, 2, 3):
        assert (await world.attach(f"ally-{n}")).status == 200
    assert (await world.start()).status == 200
    assert (await world.detach(removed)).status == 204
    await world.settled()


async def test_without_a_journal_only_the_list_counts(world: World) -> None:
    await lived(world)
    await world.redis.flushall()
    with capture_logs() as logs:
        assert (await world.attach("ally-4")).status == 200
    (line,) = [line for line in logs if line["event"] == "live_session_opened"]
    assert (line["journal"], line["listed"]) == ("not configured", ["ally-2", "ally-3"])


@pytest.fixture
async def journalled(bare: World, tmp_path: Path) -> World:
    await bare.gateway(journal=Journal(str(tmp_path / "journal*.jsonl")))
    await bare.session()
    return bare


async def test_with_the_journal_what_was_removed_live_counts(journalled: World, tmp_path: Path) -> None:
    world = journalled
    exporting = Exporting(world.gateways[0], tmp_path)
    await lived(world)
    await exporting.all()
    await world.redis.flushall()
    refused = await world.attach("ally-4")
    assert (refused.status, refused.reason) == (403, "foreign_cap_reached")
    slots = {slot["product_id"]: slot["attached"] for slot in refused.body["slots"]}
    assert slots == {"ally-1": False, "ally-2": True, "ally-3": True}
    assert (await world.attach("ally-1")).status == 200, "it has its place"
    await world.settled()
    assert await world.used() == {"ally-1", "ally-2", "ally-3"} == world.listed()
    assert b"attachgate_recovered_total 1.0" in world.gateways[0].telemetry.exposition()[0]
    exporting.output.close()


async def test_a_second_loss_is_survived_with_what_was_written_after_the_first(
    journalled: World, tmp_path: Path
) -> None:
    world = journalled
    exporting = Exporting(world.gateways[0], tmp_path)
    await lived(world)
    await exporting.all()
    await world.redis.flushall()
    assert (await world.detach("ally-2")).status == 204
    await world.settled()
    await exporting.all()
    await world.redis.flushall()
    with capture_logs() as logs:
        assert (await world.attach("ally-4")).status == 403
    assert await world.used() == {"ally-1", "ally-2", "ally-3"}
    assert [line["journal"] for line in logs if line["event"] == "live_session_opened"] == ["with gaps"]
    exporting.output.close()


async def test_what_left_before_the_start_gave_its_place_back(journalled: World, tmp_path: Path) -> None:
    world = journalled
    exporting = Exporting(world.gateways[0], tmp_path)
    for n in (1, 2, 3):
        await world.attach(f"ally-{n}")
    assert (await world.detach("ally-1")).status == 204
    assert (await world.replace("ally-2", "ally-5")).status == 200
    await world.settled()
    await world.start()
    await world.settled()
    await exporting.all()
    await world.redis.flushall()
    assert [(await world.attach(f"ally-{n}")).status for n in (6, 7)] == [200, 403]
    exporting.output.close()


async def test_a_journal_that_can_not_be_read_is_no_fresh_count(journalled: World) -> None:
    world = journalled
    await lived(world)
    await world.redis.flushall()
    refused = await world.attach("ally-4")
    assert (refused.status, refused.reason) == (503, "ledger_unavailable")
    assert (await world.attach("own-individual-1")).status == 200
    assert (await world.session("s2"), (await world.attach("ally-4", session="s2")).status) == ("s2", 200), "not live"


async def test_whoever_opens_it_first_asks_the_journal(journalled: World, tmp_path: Path) -> None:
    """A settlement, as here, or the client's view."""
    world = journalled
    exporting = Exporting(world.gateways[0], tmp_path)
    await lived(world)
    await exporting.all()
    world.fault("slow", delay_ms=60)
    attaching = asyncio.ensure_future(world.attach("ally-2"))
    await until(lambda: len(world.gateways[0]._opening.on_their_way) == 1)
    await world.redis.flushall()
    assert (await attaching).status == 200
    await world.settled()
    assert await world.used() == {"ally-1", "ally-2", "ally-3"}
    exporting.output.close()
