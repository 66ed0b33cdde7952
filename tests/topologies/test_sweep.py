"""The sweep in a Cluster: each master's sessions are a round of their own."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.config import Ledger as LedgerConfig
from gateway.ledger import sessions
from gateway.ledger.connection import connect
from gateway.ledger.sessions import Sessions
from gateway.ledger.steps import Ledger
from gateway.policy.model import SessionState
from tests.topologies.redis_processes import ClusterNodes


async def whole_round(found: Sessions, key: str) -> set[str]:
    """By a gateway that has a round to itself; twice round, since the first turn may begin anywhere. Without what other
    tests have left behind."""
    every: set[str] = set()
    for _ in range(40):
        every |= {name for name in await found.piece(key) or () if name.startswith("sweep-")}
    return every


async def test_every_open_session_of_every_master_is_found(
    cluster: ClusterNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "PIECE_KEYS", 20)
    connection = connect(cluster.url, 2.0, time.monotonic)
    try:
        ledger = Ledger(connection, LedgerConfig(), 5.0)
        names = [f"sweep-{number}" for number in range(200)]
        await asyncio.gather(*(ledger.adopt(name, "test", "", SessionState.preparing, []) for name in names))
        await asyncio.gather(*(ledger.end(name, "test") for name in names[150:]))
        first, second = Sessions(connection, "ag"), Sessions(connection, "ag")
        rounds = first.rounds()
        assert len(rounds) == 3
        parts = [await whole_round(first, key) for key in rounds]
        assert all(parts)
        assert set().union(*parts) == set(names[:150])
        assert sum(map(len, parts)) == 150, "none is found at two masters"
        assert [await second.piece(key) for key in rounds] == [None] * 3
    finally:
        await connection.close()
