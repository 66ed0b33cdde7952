"""A lane to one server: nobody waits longer than the limit, nobody gets another's answer, everybody gets an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.errors import LedgerUnavailable
from gateway.ledger import lane as lanes
from gateway.ledger.connection import Connection, connect
from gateway.ledger.replies import MEANINGS, LostAnswer
from gateway.ledger.scripts import Script
from tests.topologies.pretender import HELD, OK, Answer, Pretender, Words, bulk, pretending
from tests.topologies.redis_processes import until

LIMIT_SECONDS = 0.2
SLACK_SECONDS = 0.2
SCRIPT = Script("reserve")


@asynccontextmanager
async def asking(answer: Callable[[Words], Answer]) -> AsyncIterator[tuple[Pretender, Connection]]:
    """A server that answers so, and a connection to it."""
    async with pretending(lambda words: b"+PONG\r\n" if words == [b"PING"] else answer(words)) as server:
        connection = connect(server.url, LIMIT_SECONDS, time.monotonic)
        try:
            yield server, connection
        finally:
            await connection.close()


async def problem(call: asyncio.Future[object]) -> LedgerUnavailable:
    with pytest.raises(LedgerUnavailable) as raised:
        await call
    return raised.value


def elapsed(since: float) -> float:
    return time.monotonic() - since


async def test_calls_of_one_turn_are_one_pipeline_and_get_their_own_answers() -> None:
    async with asking(lambda words: bulk(words[1])) as (server, connection):
        answers = await asyncio.gather(*(connection.command("GET", f"k{n}") for n in range(300)))
        assert answers == [f"k{n}".encode() for n in range(300)]
        assert server.connections == 1


async def test_a_stalled_server_costs_the_limit_thrice_and_then_nothing() -> None:
    stalled = True

    def answer(words: Words) -> bytes | None:
        return None if stalled else OK

    async with pretending(answer) as server:
        connection = connect(server.url, LIMIT_SECONDS, time.monotonic)
        try:
            for _ in range(3):
                began = time.monotonic()
                error = await problem(connection.command("GET", "k"))
                assert "within ledger.timeout_seconds" in error.detail
                assert elapsed(began) < LIMIT_SECONDS + SLACK_SECONDS
            assert not connection.available
            began = time.monotonic()
            for _ in range(1000):
                error = await problem(connection.command("GET", "k"))
            assert elapsed(began) < SLACK_SECONDS
            assert "asked again in the background" in error.detail

            stalled = False
            await until(lambda: asyncio.sleep(0, connection.available), 5.0)
            assert await connection.command("GET", "k") == b"OK"
            assert [words for words in server.heard if words[0] == b"GET"] == [[b"GET", b"k"]]
        finally:
            await connection.close()


async def test_after_a_probe_one_failure_is_enough_to_stop_again() -> None:
    """A server may answer a PING and still be unable to serve."""
    async with asking(lambda words: None) as (_, connection):
        for _ in range(3):
            await problem(connection.command("GET", "k"))
        assert not connection.available
        await until(lambda: asyncio.sleep(0, connection.available), 5.0)
        await problem(connection.command("GET", "k"))
        assert not connection.available


async def test_a_late_answer_reaches_nobody_else() -> None:
    late = asyncio.Event()

    async def answer(words: Words) -> bytes | None:
        if words[1] == b"slow":
            await late.wait()
        return bulk(words[1])

    async with asking(answer) as (_, connection):
        error = await problem(connection.command("GET", "slow"))
        assert not isinstance(error, LostAnswer)
        second = connection.command("GET", "second")
        late.set()
        assert await second == b"second"
        assert await connection.command("GET", "third") == b"third"


async def test_answers_that_trickle_in_do_not_add_up() -> None:
    async def answer(words: Words) -> bytes:
        await asyncio.sleep(0.6 * LIMIT_SECONDS)
        return bulk(words[1])

    async with asking(answer) as (_, connection):
        began = time.monotonic()
        calls = [connection.command("GET", f"k{n}") for n in range(5)]
        assert await calls[0] == b"k0"
        for call in calls[1:]:
            await problem(call)
        assert elapsed(began) < LIMIT_SECONDS + SLACK_SECONDS


async def test_what_waits_behind_a_stalled_pipeline_fails_with_it() -> None:
    async with asking(lambda words: None) as (server, connection):
        began = time.monotonic()
        first = connection.command("GET", "first")
        await server.sees(lambda: bool(server.heard))
        second = connection.command("GET", "second")
        await problem(first)
        error = await problem(second)
        assert not isinstance(error, LostAnswer), "it was never sent"
        assert elapsed(began) < LIMIT_SECONDS + SLACK_SECONDS
        assert server.told(b"GET") == 1


async def test_a_connection_that_broke_says_that_the_answer_was_lost() -> None:
    async with asking(lambda words: server.hang_up()) as (server, connection):  # type: ignore[func-returns-value]
        assert isinstance(await problem(connection.command("GET", "k")), LostAnswer)


async def test_a_connection_closed_while_idle_costs_no_call() -> None:
    async with asking(lambda words: OK) as (server, connection):
        await connection.command("GET", "k")
        server.hang_up()
        await server.sees(lambda: not server.writers)
        assert await connection.command("GET", "k") == b"OK"
        assert server.connections == 2


async def test_of_two_attempts_to_connect_one_connection_is_left() -> None:
    async with asking(lambda words: bulk(words[1])) as (server, connection):
        await connection.command("GET", "k")
        assert await connection._lanes["redis"]._connect()
        await server.sees(lambda: server.connections == 2 and len(server.writers) == 1)
        assert await connection.command("GET", "second") == b"second"
        assert server.connections == 2


async def test_nonsense_ends_the_connection_and_the_call() -> None:
    said = iter([b"%%%\r\n", OK])
    async with asking(lambda words: next(said)) as (_, connection):
        await problem(connection.command("GET", "k"))
        assert await connection.command("GET", "k") == b"OK"


async def test_answers_that_arrive_in_pieces_are_put_together() -> None:
    async with asking(lambda words: bulk(words[1] * 100_000)) as (_, connection):
        answers = await asyncio.gather(*(connection.command("GET", f"k{n}") for n in range(20)))
        assert answers == [f"k{n}".encode() * 100_000 for n in range(20)]


@pytest.mark.parametrize("more", [b"+LATE\r\n", b"$9\r\nthe be"])
async def test_more_than_was_asked_for_reaches_nobody(more: bytes) -> None:
    async with asking(lambda words: bulk(words[1]) + more) as (server, connection):
        for n in range(3):
            assert await connection.command("GET", f"k{n}") == f"k{n}".encode()
        assert server.connections == 3


async def test_what_comes_unasked_reaches_nobody() -> None:
    async with asking(lambda words: bulk(words[1])) as (server, connection):
        await connection.command("GET", "k")
        wire = connection._lanes["redis"]._wire
        assert wire is not None
        for writer in server.writers:
            writer.write(b"+LATE\r\n")
        await until(lambda: asyncio.sleep(0, not wire.usable), 5.0)
        assert await connection.command("GET", "second") == b"second"
        assert server.connections == 2


async def test_what_a_server_pushes_is_no_answer() -> None:
    async with asking(lambda words: b">2\r\n+message\r\n+x\r\n" + bulk(words[1])) as (server, connection):
        for n in range(3):
            assert await connection.command("GET", f"k{n}") == f"k{n}".encode()
        assert server.connections == 1


async def test_a_pause_of_our_own_is_not_taken_for_the_servers() -> None:
    async with asking(lambda words: OK) as (server, connection):
        await connection.command("GET", "k")
        call = connection.command("GET", "k")
        await server.sees(lambda: server.told(b"GET") == 2)
        time.sleep(2 * LIMIT_SECONDS)  # noqa: ASYNC251
        assert await call == b"OK"


async def test_a_call_that_nobody_waits_for_any_more_is_not_sent() -> None:
    async with asking(lambda words: OK) as (server, connection):
        call = connection.command("GET", "given up")
        call.cancel()
        assert await connection.command("GET", "k") == b"OK"
        assert server.heard == [[b"GET", b"k"]]


async def test_there_is_an_end_to_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_WAITING", 10)
    async with asking(lambda words: OK) as (_, connection):
        calls = [connection.command("GET", "k") for _ in range(12)]
        said = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(one, LedgerUnavailable) for one in said] == [False] * 10 + [True] * 2


async def test_close_answers_what_was_asked_and_refuses_the_rest() -> None:
    async with asking(lambda words: OK) as (_, connection):
        asked = connection.command("GET", "k")
        await connection.close()
        assert await asked == b"OK"
        assert "being stopped" in (await problem(connection.command("GET", "k"))).detail


async def test_close_does_not_wait_for_a_stalled_server() -> None:
    async with asking(lambda words: None) as (_, connection):
        asked = connection.command("GET", "k")
        await asyncio.sleep(0)
        await connection.close()
        await problem(asked)


async def test_a_script_that_the_server_does_not_know_is_sent_whole_once() -> None:
    known: set[bytes] = set()

    def answer(words: Words) -> bytes:
        if words[0] == b"EVAL":
            known.add(words[1])
            return HELD
        return HELD if known else b"-NOSCRIPT No matching script. Please use EVAL.\r\n"

    async with asking(answer) as (server, connection):
        for _ in range(2):
            assert (await connection.call(SCRIPT, ["k"], []))[0] == b"held"
        assert known == {SCRIPT.text.encode()}
        assert (server.told(b"EVALSHA"), server.told(b"EVAL")) == (2, 1)


async def test_a_server_that_forgets_scripts_at_once_is_not_asked_for_ever() -> None:
    async with asking(lambda words: b"-NOSCRIPT No matching script.\r\n") as (server, connection):
        assert (await problem(connection.call(SCRIPT, ["k"], []))).detail == MEANINGS["NOSCRIPT"].detail
        assert len(server.heard) == 2


async def test_a_demoted_master_is_left_and_the_call_asked_again() -> None:
    demoted = b"-READONLY You can't write against a read only replica. script: f00, on @user_script:12.\r\n"
    async with asking(lambda words: demoted if server.connections == 1 else OK) as (server, connection):
        assert await connection.command("HSET", "k") == b"OK"
        assert server.connections == 2


async def test_a_replica_that_stays_one_is_asked_twice_and_then_counts_as_away() -> None:
    async with asking(lambda words: b"-READONLY You can't write against a read only replica.\r\n") as (
        server,
        connection,
    ):
        assert (await problem(connection.command("HSET", "k"))).detail == MEANINGS["READONLY"].detail
        assert len(server.heard) == 2
        assert (await problem(connection.command("HSET", "k"))).detail.startswith(MEANINGS["READONLY"].detail)
        assert not connection.available


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'. script: f00, on @user_script:5.", "OOM"),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", "MISCONF"),
        ("NOREPLICAS Not enough good replicas to write.", "NOREPLICAS"),
        ("NOPERM this user has no permissions to run the 'evalsha' command", "NOPERM"),
        ("NOAUTH Authentication required.", "NOAUTH"),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "BUSY"),
        ("LOADING Redis is loading the dataset in memory", "LOADING"),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "MASTERDOWN"),
        ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", "UNBLOCKED"),
        (
            "ERR Error running script (call to f_0a1b): @user_script:12: @user_script: 12:"
            " -OOM command not allowed when used memory > 'maxmemory'. ",
            "OOM",
        ),
        (
            "ERR Error running script (call to f_0a1b): @user_script:12: @user_script: 12:"
            " -READONLY You can't write against a read only replica. ",
            "READONLY",
        ),
        (
            "ERR Error running script (call to f_0a1b): @user_script:12: @user_script: 12:"
            " The user executing the script can't run this command or subcommand ",
            "NOPERM",
        ),
        (
            "ERR ACL failure in script: User ag has no permissions to run the 'hget' command script: f00, on"
            " @user_script:5.",
            "NOPERM",
        ),
    ],
)
async def test_an_error_reply_is_told_with_what_to_do(line: str, code: str) -> None:
    async with asking(lambda words: f"-{line}\r\n".encode()) as (_, connection):
        error = await problem(connection.call(SCRIPT, ["k"], []))
        assert error.detail == MEANINGS[code].detail
        assert not isinstance(error, LostAnswer)


@pytest.mark.parametrize("line", ["MOVED 7 127.0.0.1:7001", "ASK 7 127.0.0.1:7001", "CLUSTERDOWN The cluster is down"])
async def test_a_cluster_behind_a_plain_address_is_told(line: str) -> None:
    async with asking(lambda words: f"-{line}\r\n".encode()) as (_, connection):
        assert "redis+cluster://" in (await problem(connection.command("GET", "k"))).detail


async def test_an_error_that_no_table_has_is_told_as_it_is() -> None:
    async with asking(lambda words: b"-ERR value is not an integer or out of range\r\n") as (_, connection):
        assert "not an integer" in (await problem(connection.command("INCR", "k"))).detail


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("LOADING Redis is loading the dataset in memory", "LOADING"),
        ("NOAUTH Authentication required.", "NOAUTH"),
        ("MISCONF Redis is configured to save RDB snapshots, but can't.", "MISCONF"),
        ("NOPERM this user has no permissions to run the 'ping' command", "NOPERM"),
    ],
)
async def test_a_server_that_refuses_a_ping_is_away_and_says_why_while_it_is(line: str, code: str) -> None:
    async with pretending(lambda words: f"-{line}\r\n".encode()) as server:
        connection = connect(server.url, LIMIT_SECONDS, time.monotonic)
        for _ in range(5):
            assert (await problem(connection.command("GET", "k"))).detail.startswith(MEANINGS[code].detail)
        assert not connection.available
        assert server.told(b"GET") == 0
        await connection.close()


@pytest.mark.parametrize("line", ["WRONGPASS invalid username-password pair", "ERR invalid password"])
async def test_a_wrong_password_is_told(line: str) -> None:
    async with pretending(lambda words: f"-{line}\r\n".encode()) as server:
        connection = connect(f"redis://user:pass@127.0.0.1:{server.port}", LIMIT_SECONDS, time.monotonic)
        assert (await problem(connection.command("GET", "k"))).detail == MEANINGS["WRONGPASS"].detail
        assert server.heard[0] == [b"AUTH", b"user", b"pass"]
        await connection.close()


async def test_a_busy_server_counts_as_away() -> None:
    async with asking(lambda words: b"-BUSY Redis is busy running a script.\r\n") as (_, connection):
        for _ in range(3):
            await problem(connection.command("GET", "k"))
        assert not connection.available


async def test_a_full_server_answers_and_so_is_not_away() -> None:
    async with asking(lambda words: b"-OOM command not allowed when used memory > 'maxmemory'.\r\n") as (_, connection):
        for _ in range(5):
            await problem(connection.command("GET", "k"))
        assert connection.available


class Replicated:
    """A master whose WAIT is answered with `confirms`."""

    def __init__(self) -> None:
        self.confirms: bytes = b":1\r\n"

    def __call__(self, words: Words) -> bytes:
        return self.confirms if words[0] == b"WAIT" else HELD


async def test_one_wait_a_pipeline_confirms_all_that_it_wrote() -> None:
    async with asking(Replicated()) as (server, connection):
        calls = [connection.call_replicated(SCRIPT, ["k"], []) for _ in range(20)]
        plain = connection.call(SCRIPT, ["k"], [])
        assert all(confirmed for _, confirmed in await asyncio.gather(*calls))
        assert (await plain)[0] == b"held"
        assert server.told(b"WAIT") == 1
        assert server.heard[-1][0] == b"WAIT", "it stands behind what it confirms"
        await connection.call(SCRIPT, ["k"], [])
        assert server.told(b"WAIT") == 1, "what need not be confirmed does not wait"


@pytest.mark.parametrize(
    "said", [b":0\r\n", b"-UNBLOCKED force unblock from blocking operation\r\n", b"-NOPERM no permissions\r\n"]
)
async def test_without_a_replica_what_must_be_replicated_is_refused_at_once_and_the_rest_goes_on(said: bytes) -> None:
    master = Replicated()
    master.confirms = said
    async with asking(master) as (_, connection):
        for _ in range(3):
            answer, confirmed = await connection.call_replicated(SCRIPT, ["k"], [])
            assert answer[0] == b"held"
            assert not confirmed
        assert "Too few replicas" in (await problem(connection.call_replicated(SCRIPT, ["k"], []))).detail
        assert (await connection.call(SCRIPT, ["k"], []))[0] == b"held"
        assert connection.available

        master.confirms = b":2\r\n"

        async def confirmed_again() -> bool:
            try:
                return (await connection.call_replicated(SCRIPT, ["k"], []))[1]
            except LedgerUnavailable:
                return False

        await until(confirmed_again, 5.0)


@pytest.mark.parametrize("said", [b":0\r\n", b"-ERR WAIT cannot be used with replica instances.\r\n"])
async def test_a_master_without_replicas_may_be_one_no_longer(said: bytes) -> None:
    """It was cut off or demoted, and says so to nobody: the replicas are looked for where the master is now."""

    def answer(words: Words) -> bytes:
        if words[0] == b"WAIT":
            return said if server.connections == 1 else b":1\r\n"
        return HELD

    async with asking(answer) as (server, connection):
        for _ in range(3):
            assert not (await connection.call_replicated(SCRIPT, ["k"], []))[1]

        async def confirmed() -> bool:
            await connection.call(SCRIPT, ["k"], [])
            try:
                return (await connection.call_replicated(SCRIPT, ["k"], []))[1]
            except LedgerUnavailable:
                return False

        await until(confirmed, 5.0)


async def test_a_connection_that_breaks_before_wait_is_answered_leaves_it_open() -> None:
    def answer(words: Words) -> bytes | None:
        if words[0] == b"WAIT":
            server.hang_up()
            return None
        return HELD

    async with asking(answer) as (server, connection):
        assert isinstance(await problem(connection.call_replicated(SCRIPT, ["k"], [])), LostAnswer)
