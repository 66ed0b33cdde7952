"""A crowd does not make the loop's turns long: what is under way goes on between its requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from gateway.config import Listen
from gateway.proxy.listener import BEGUN_A_TURN, Connection, Listener

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


def come(listener: Listener) -> tuple[list[Client], list[int]]:
    served: list[int] = []
    clients = [Client(served, number) for number in range(CROWD)]
    for client in clients:
        listener.begin(cast(Connection, client), cast(Any, None))
    return clients, served


async def test_a_turn_begins_few_requests_and_all_in_order(listener: Listener) -> None:
    _, served = come(listener)
    most = before = 0
    while len(served) < CROWD:
        await asyncio.sleep(0)
        most, before = max(most, len(served) - before), len(served)
    assert served == list(range(CROWD))
    assert most == BEGUN_A_TURN


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
