"""The decision journal in a Cluster: its streams lie on all masters, and are exported from all."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from gateway.config import Ledger
from gateway.export.exporter import Exporter
from gateway.ledger.connection import connect
from gateway.ledger.streams import Note, Streams
from tests.export.conftest import Memory
from tests.topologies.redis_processes import SLOTS, ClusterNodes, slot_of
from tests.topologies.test_standalone import allow, denied, server, url_of


async def test_streams_on_all_masters_are_exported(cluster: ClusterNodes) -> None:
    connection = connect(cluster.url, 2.0, time.monotonic)
    streams = Streams(connection, Ledger(prefix="journal"))
    names = {f"op{bucket}" for bucket in range(0, 1024, 64)}
    written = streams.write(
        {int(name[2:]): [Note("decision", "", name, b'[1,"a","live_room","attach","allowed"]')] for name in names}
    )
    await asyncio.gather(*(step for _, step in written))
    outputs = Memory(), Memory()
    stop = asyncio.Event()
    exporters = [Exporter(streams, output, "export", 30.0) for output in outputs]
    await asyncio.gather(*(exporter.run(stop, once=True) for exporter in exporters))
    lines = outputs[0].read + outputs[1].read
    assert {line["decision_id"] for line in lines} == names
    assert len(lines) == len(names)
    masters = {slot_of(f"journal:{{{name[2:]}}}:e") * 3 // SLOTS for name in names}
    assert masters == {0, 1, 2}, "each master has some of them"
    await connection.close()


async def test_a_user_with_the_rule_that_is_documented_may_export() -> None:
    text = (Path(__file__).parents[2] / "deploy" / "gateway.toml").read_text()
    found = re.search(r"`attachgate journal` needs besides: (.*)", text)
    assert found is not None
    async with server() as node:
        await allow(node, *found[1].split())
        connection = connect(url_of(node, "attachgate:PASSWORD@"), 2.0, time.monotonic)
        streams = Streams(connection, Ledger())
        [(_, written)] = streams.write({5: [Note("dropped", "", "", b'{"count":1,"gateway":"g"}')]})
        await written
        output = Memory()
        for fails in (True, False):
            output.fails = fails
            try:
                await Exporter(streams, output, "export", 0.0).run(asyncio.Event(), once=True)
            except OSError:
                assert fails
        assert [line["reason"] for line in output.read] == ["dropped"]
        assert await denied(node) == []
        await connection.close()
