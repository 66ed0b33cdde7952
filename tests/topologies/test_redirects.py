"""Errors of a Cluster that a real one gives only at odd moments, from nodes that say what the test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from gateway.errors import LedgerUnavailable
from gateway.ledger.connection import Connection, connect
from gateway.ledger.replies import MEANINGS
from tests.ports import free_port
from tests.topologies.pretender import OK, Pretender, Words, pretending
from tests.topologies.redis_processes import SLOTS, until

LIMIT_SECONDS = 0.3
SLACK_SECONDS = 0.2

Says = Callable[[int, Words], bytes | None]


@asynccontextmanager
async def cluster_of(number: int, says: Says) -> AsyncIterator[tuple[list[Pretender], Connection]]:
    """Nodes that share the slots evenly. `says` is asked with the node's number and the command."""
    nodes: list[Pretender] = []

    def slots() -> bytes:
        shares = [(n * SLOTS // number, (n + 1) * SLOTS // number - 1, node.port) for n, node in enumerate(nodes)]
        entries = [b"*3\r\n:%d\r\n:%d\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$2\r\nid\r\n" % share for share in shares]
        return b"*%d\r\n%s" % (len(entries), b"".join(entries))

    def answer_of(n: int) -> Callable[[Words], bytes | None]:
        def answer(words: Words) -> bytes | None:
            if words == [b"PING"]:
                return b"+PONG\r\n"
            said = says(n, words)
            return slots() if said is None and words[0] == b"CLUSTER" else said

        return answer

    async with AsyncExitStack() as stack:
        for n in range(number):
            nodes.append(await stack.enter_async_context(pretending(answer_of(n))))
        connection = connect(f"redis+cluster://127.0.0.1:{nodes[0].port}", LIMIT_SECONDS, time.monotonic)
        stack.push_async_callback(connection.close)
        yield nodes, connection


async def problem(call: asyncio.Future[object]) -> LedgerUnavailable:
    with pytest.raises(LedgerUnavailable) as raised:
        await call
    return raised.value


def asked(node: Pretender) -> int:
    return node.told(b"GET")


LOW, HIGH = "{2}", "{0}"
"""Keys of the first and the second half of the slots."""


async def test_each_key_is_asked_of_the_server_that_has_it() -> None:
    def says(n: int, words: Words) -> bytes | None:
        return b"$1\r\n%d\r\n" % n if words[0] == b"GET" else None

    async with cluster_of(2, says) as (_, connection):
        assert [await connection.command("GET", key) for key in (LOW, HIGH)] == [b"0", b"1"]


async def test_moved_is_followed_at_once_and_the_map_learnt_anew() -> None:
    def says(n: int, words: Words) -> bytes | None:
        if words[0] != b"GET":
            return None
        return OK if n == 1 else b"-MOVED 1 127.0.0.1:%d\r\n" % nodes[1].port

    async with cluster_of(2, says) as (nodes, connection):
        began = time.monotonic()
        assert await connection.command("GET", LOW) == b"OK"
        assert time.monotonic() - began < SLACK_SECONDS
        await until(lambda: asyncio.sleep(0, sum(node.told(b"CLUSTER") for node in nodes) == 2), 5.0)


async def test_moved_to_a_host_that_is_not_named_stays_on_the_same_host() -> None:
    def says(n: int, words: Words) -> bytes | None:
        if words[0] != b"GET":
            return None
        return OK if n == 1 else b"-MOVED 1 :%d\r\n" % nodes[1].port

    async with cluster_of(2, says) as (nodes, connection):
        assert await connection.command("GET", LOW) == b"OK"


async def test_ask_asks_once_with_asking_in_front_on_the_same_connection() -> None:
    def says(n: int, words: Words) -> bytes | None:
        if words[0] == b"ASKING":
            return OK
        if words[0] != b"GET":
            return None
        return OK if n == 1 else b"-ASK 1 127.0.0.1:%d\r\n" % nodes[1].port

    async with cluster_of(2, says) as (nodes, connection):
        calls = [connection.command("GET", LOW) for _ in range(3)]
        assert await asyncio.gather(*calls) == [b"OK"] * 3
        assert [words[0] for words in nodes[1].heard if words[0] != b"CLUSTER"] == [b"ASKING", b"GET"] * 3
        assert await connection.command("GET", LOW) == b"OK"
        assert asked(nodes[0]) == 4, "where the slot is has not changed yet"


async def test_servers_that_send_a_call_to_each_other_do_not_do_so_for_ever() -> None:
    def says(n: int, words: Words) -> bytes | None:
        return b"-MOVED 1 127.0.0.1:%d\r\n" % nodes[1 - n].port if words[0] == b"GET" else None

    async with cluster_of(2, says) as (nodes, connection):
        began = time.monotonic()
        assert (await problem(connection.command("GET", LOW))).detail == MEANINGS["MOVED"].detail
        assert time.monotonic() - began < 2 * LIMIT_SECONDS + SLACK_SECONDS
        assert asked(nodes[0]) + asked(nodes[1]) < 40


@pytest.mark.parametrize(
    "line", ["TRYAGAIN Multiple keys request during rehashing of slot", "CLUSTERDOWN The cluster is down"]
)
async def test_what_passes_is_asked_again_in_a_moment_and_what_stays_is_told(line: str) -> None:
    patience = 3

    def says(n: int, words: Words) -> bytes | None:
        nonlocal patience
        if words[0] != b"GET":
            return None
        patience -= 1
        return OK if patience == 0 else f"-{line}\r\n".encode()

    async with cluster_of(1, says) as (_, connection):
        assert await connection.command("GET", LOW) == b"OK"
        began = time.monotonic()
        assert (await problem(connection.command("GET", LOW))).detail == MEANINGS[line.partition(" ")[0]].detail
        assert time.monotonic() - began < 2 * LIMIT_SECONDS + SLACK_SECONDS
        assert connection.available


async def test_a_storm_of_moved_learns_the_map_once() -> None:
    def says(n: int, words: Words) -> bytes | None:
        if words[0] != b"GET":
            return None
        return OK if n == 1 else b"-MOVED 1 127.0.0.1:%d\r\n" % nodes[1].port

    async with cluster_of(2, says) as (nodes, connection):
        await asyncio.gather(*(connection.command("GET", LOW) for _ in range(400)))
        assert sum(node.told(b"CLUSTER") for node in nodes) <= 3


async def test_a_cluster_that_can_not_be_reached_costs_the_limit_once_and_is_found_when_it_comes() -> None:
    connection = connect(f"redis+cluster://127.0.0.1:{free_port()}", LIMIT_SECONDS, time.monotonic)
    try:
        began = time.monotonic()
        for _ in range(100):
            assert "Cluster at ledger.url can't be reached" in (await problem(connection.command("GET", LOW))).detail
        assert time.monotonic() - began < LIMIT_SECONDS + SLACK_SECONDS
        assert not connection.available
    finally:
        await connection.close()


async def test_a_first_node_that_is_stalled_is_not_waited_for() -> None:
    """The second address of the configuration answers, whichever is asked first."""

    def says(n: int, words: Words) -> bytes | None:
        return OK if words[0] == b"GET" else None

    async with cluster_of(1, says) as (nodes, _), pretending(lambda words: None) as stalled:
        url = f"redis+cluster://127.0.0.1:{stalled.port},127.0.0.1:{nodes[0].port}"
        for _ in range(4):
            connection = connect(url, LIMIT_SECONDS, time.monotonic)

            async def served(connection: Connection = connection) -> bool:
                try:
                    return bool(await connection.command("GET", LOW) == b"OK")
                except LedgerUnavailable:
                    return False

            await until(served, 3.0)
            await connection.close()


async def test_a_slot_that_nobody_has_is_refused_at_once_and_the_others_are_served() -> None:
    def says(n: int, words: Words) -> bytes | None:
        if words[0] == b"CLUSTER":
            entry = b"*3\r\n:0\r\n:%d\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$2\r\nid\r\n"
            return b"*1\r\n" + entry % (SLOTS // 2, nodes[0].port)
        return OK

    async with cluster_of(1, says) as (nodes, connection):
        assert await connection.command("GET", LOW) == b"OK"
        began = time.monotonic()
        for _ in range(50):
            assert "no master for this session" in (await problem(connection.command("GET", HIGH))).detail
        assert time.monotonic() - began < SLACK_SECONDS
        assert await connection.command("GET", LOW) == b"OK"


async def test_one_key_a_server_finds_each_of_them() -> None:
    def says(n: int, words: Words) -> bytes | None:
        return OK if words[0] == b"GET" else None

    async with cluster_of(3, says) as (nodes, connection):
        keys = [f"{{{n}}}" for n in range(200)]
        assert connection.one_a_server(keys) == ["{0}"]
        await connection.command("GET", LOW)
        await asyncio.gather(*(connection.command("GET", key) for key in connection.one_a_server(keys)))
        assert all(asked(node) for node in nodes)
