"""A crowd neither makes the loop's turns long nor comes before everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.config import Listen
from gateway.proxy.connection import Connection
from gateway.proxy.listener import BEGUN_A_TURN, BEGUN_OF_A_SESSION, Listener
from gateway.proxy.turns import Turns

CROWD = 3 * BEGUN_A_TURN + 5


class Client:
    """A connection with one request."""

    def __init__(self, served: list[int], number: int) -> None:
        self.transport: object | None = object()
        self._served = served
        self._number = number

    async def serve(self, plain: object) -> None:
        self._served.append(self._number)


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    unused = cast(Any, None)
    listener = Listener(unused, unused, Listen(), 0, refused=unused, closing=unused)
    yield listener
    await listener.plain_requests.cancel()


def come(listener: Listener, quiet: int = 0) -> tuple[list[Client], list[int]]:
    """A crowd on one session; behind it one request each of so many quiet sessions."""
    served: list[int] = []
    clients = [Client(served, number) for number in range(CROWD + quiet)]
    for number, client in enumerate(clients):
        plain = SimpleNamespace(target="/hot" if number < CROWD else f"/quiet-{number}")
        listener.begin(cast(Connection, client), cast(Any, plain))
    return clients, served


async def test_a_turn_begins_few_requests_of_a_session_and_all_in_order(listener: Listener) -> None:
    _, served = come(listener)
    most = before = 0
    while len(served) < CROWD:
        await asyncio.sleep(0)
        most, before = max(most, len(served) - before), len(served)
    assert served == list(range(CROWD))
    assert most == BEGUN_OF_A_SESSION


async def test_a_turn_begins_few_requests_of_many_sessions(listener: Listener) -> None:
    _, served = come(listener, quiet=CROWD)
    await asyncio.sleep(0)
    assert len(served) == BEGUN_A_TURN


async def test_a_quiet_session_does_not_wait_for_the_crowd(listener: Listener) -> None:
    _, served = come(listener, quiet=10)
    await asyncio.sleep(0)
    assert set(served) == {*range(CROWD, CROWD + 10), *range(BEGUN_OF_A_SESSION)}


def test_turns_go_round() -> None:
    turns: Turns[str] = Turns()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        turns.put(item[0], item)
    assert turns.take(3, 9) == ["a1", "b1", "c1"]
    turns.put("b", "b2")
    assert turns.take(9, 1) == ["a2", "c2", "b2"]
    assert turns
    assert turns.take(9, 9) == ["a3"]
    assert not turns
    assert turns.take(9, 9) == []


async def test_who_left_before_its_turn_is_not_served(listener: Listener) -> None:
    clients, served = come(listener)
    clients[-1].transport = None
    for _ in range(CROWD):
        await asyncio.sleep(0)
    assert served == list(range(CROWD - 1))


async def test_a_drain_serves_who_waits(listener: Listener) -> None:
    _, served = come(listener)
    await listener.drain(5.0)
    assert served == list(range(CROWD))
