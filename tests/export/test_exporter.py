"""Each entry is written down at least once, whoever is killed when; what is missing is said."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.errors import LedgerUnavailable
from gateway.ledger.lines import Decided
from gateway.ledger.streams import Note
from tests.export.conftest import Journal, Memory, operations


def gaps(output: Memory) -> list[dict[str, Any]]:
    return [{name: line[name] for name in line if name != "at"} for line in output.read if line["type"] == "gap"]


async def test_each_entry_is_written_once_and_then_acknowledged(journal: Journal) -> None:
    names = await journal.events(450) + await journal.events(3, bucket=900)
    output = Memory()
    await journal.once(output)
    assert sorted(operations(output.read)) == sorted(names)
    assert output.read[0].keys() == {
        *("type", "id", "bucket", "at", "session_id", "event", "decision_id", "products", "used")
    }
    assert (await journal.raw.xpending(journal.key(5), "export"))["pending"] == 0
    more = await journal.events(1, first=450)
    await journal.once(output)
    assert operations(output.read)[453:] == more


async def test_groups_do_not_share(journal: Journal) -> None:
    names = await journal.events(3)
    one, other = Memory(), Memory()
    await journal.once(one)
    await journal.once(other, group="audit")
    assert operations(one.read) == operations(other.read) == names


async def test_what_was_not_written_comes_again_to_whoever_asks_after_a_while(journal: Journal) -> None:
    names = await journal.events(300)
    output = Memory()
    output.fails = True
    with pytest.raises(OSError, match="space"):
        await journal.once(output)
    output.fails = False
    await journal.once(output)
    assert operations(output.read) == names[200:], "the others may still be written by who has read them"
    await journal.once(output, claim_seconds=0)
    assert sorted(operations(output.read)) == sorted(names)


async def test_two_exporters_share_the_work(journal: Journal) -> None:
    names = [name for bucket in range(0, 1024, 16) for name in await journal.events(10, bucket=bucket)]
    outputs = Memory(), Memory()
    await asyncio.gather(*(journal.once(output) for output in outputs))
    assert sorted(operations(outputs[0].read) + operations(outputs[1].read)) == sorted(names)
    assert all(output.lines for output in outputs)


async def test_what_was_trimmed_before_it_was_read_is_told_before_what_follows(journal: Journal) -> None:
    await journal.events(5)
    output = Memory()
    exporter = journal.exporter(output)
    await exporter.run(asyncio.Event(), once=True)
    position = output.read[-1]["id"]
    names = await journal.events(30, first=5)
    await journal.raw.xtrim(journal.key(5), maxlen=10, approximate=False)
    oldest = (await journal.raw.xrange(journal.key(5), count=1))[0][0]
    output.fails = True
    with pytest.raises(OSError, match="space"):
        await exporter.run(asyncio.Event(), once=True)
    output.fails = False
    await journal.once(output, claim_seconds=0)
    assert gaps(output) == [{"type": "gap", "bucket": 5, "reason": "trimmed", "after": position, "before": oldest}]
    assert [line["type"] for line in output.read[5:]] == ["gap"] + ["event"] * 10
    assert operations(output.read)[5:] == names[-10:]


async def test_a_position_that_is_still_there_is_no_gap(journal: Journal) -> None:
    await journal.events(20)
    output = Memory()
    await journal.once(output)
    await journal.raw.xtrim(journal.key(5), maxlen=1, approximate=False)
    await journal.events(20, first=20)
    await journal.once(output)
    assert gaps(output) == []


async def test_what_was_read_never_written_and_then_trimmed_is_told(journal: Journal) -> None:
    await journal.events(4)
    output = Memory()
    output.fails = True
    with pytest.raises(OSError, match="space"):
        await journal.once(output)
    ids = [identifier for identifier, _ in await journal.raw.xrange(journal.key(5))]
    await journal.raw.xtrim(journal.key(5), maxlen=1, approximate=False)
    output.fails = False
    await journal.once(output, claim_seconds=0)
    assert gaps(output) == [{"type": "gap", "bucket": 5, "reason": "trimmed", "ids": ids[:3]}]
    assert operations(output.read) == ["op-5-3"]
    assert (await journal.raw.xpending(journal.key(5), "export"))["pending"] == 0


async def test_a_stream_that_redis_lost_is_told_by_who_had_read_it_or_has_it_in_his_file(journal: Journal) -> None:
    await journal.events(2)
    output = Memory()
    exporter = journal.exporter(output)
    await exporter.run(asyncio.Event(), once=True)
    position = output.read[-1]["id"]
    await journal.raw.delete(journal.key(5))
    names = await journal.events(2, first=2)
    restarted = Memory({5: position})
    told = {"type": "gap", "bucket": 5, "reason": "lost", "after": position, "before": ""}
    await journal.once(restarted)
    assert gaps(restarted) == [told]
    assert operations(restarted.read) == names
    await journal.raw.delete(journal.key(5))
    await exporter.run(asyncio.Event(), once=True)
    await exporter.run(asyncio.Event(), once=True)
    assert gaps(output) == [told], "once"


async def test_a_stream_that_expired_is_no_loss(journal: Journal) -> None:
    output = Memory({5: "1000-0"})
    await journal.once(output)
    await journal.events(1)
    await journal.once(output)
    assert gaps(output) == []
    assert operations(output.read) == ["op-5-0"]


async def test_a_redis_that_went_back_in_time_is_told(journal: Journal) -> None:
    await journal.events(2)
    output = Memory()
    exporter = journal.exporter(output)
    await exporter.run(asyncio.Event(), once=True)
    saved = await journal.raw.execute_command("DUMP", journal.key(5), NEVER_DECODE=True)
    await journal.events(2, first=2)
    await exporter.run(asyncio.Event(), once=True)
    position = output.read[-1]["id"]
    await journal.raw.execute_command("RESTORE", journal.key(5), 0, saved, "REPLACE")
    await exporter.run(asyncio.Event(), once=True)
    assert gaps(output) == [{"type": "gap", "bucket": 5, "reason": "rewound", "after": position, "before": ""}]


async def test_each_kind_of_entry_has_its_line(journal: Journal) -> None:
    decided = msgspec.json.encode(
        Decided(
            1_790_000_000_123, "acc", "live_room", "attach", "refused", "foreign_cap_reached", "N3", "2026-07", 3, 3
        )
    )
    notes = [
        Note("decision", "", "op1", decided),
        Note("refused", "room", "op2", decided, "p1 p2", 3, 3),
        Note("dropped", "", "", b'{"count":7,"gateway":"g"}'),
        Note("decision", "room", "op3", b"nonsense"),
    ]
    [(_, written)] = journal.streams.write({5: notes})
    await written
    await journal.raw.xadd(journal.key(5), {"somebody": "else"})
    output = Memory()
    await journal.once(output)
    first, second, third, fourth, fifth = output.read
    assert (first["type"], first["session_id"], first["rule"], first["at"]) == (
        *("decision", None, "N3"),
        "2026-09-21T14:13:20.123Z",
    )
    assert (second["type"], second["event"], second["session_id"], second["used"]) == ("decision", "refused", "room", 3)
    assert (third["type"], third["reason"], third["count"]) == ("gap", "dropped", 7)
    assert (fourth["type"], fourth["fields"]["d"]) == ("unknown", "nonsense")
    assert (fifth["type"], fifth["fields"]) == ("unknown", {"somebody": "else"})


async def test_once_says_that_redis_is_away(journal: Journal) -> None:
    await journal.connection.close()
    with pytest.raises(LedgerUnavailable):
        await journal.once(Memory())
