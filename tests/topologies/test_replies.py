"""What real servers answer when they can't: repeated where that is safe, else told with a reason, and over when it is
over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import RedisError, ResponseError

from gateway.errors import LedgerUnavailable
from gateway.ledger.replies import MEANINGS
from gateway.ledger.steps import Ledger, Step
from gateway.policy.model import SessionState
from tests.topologies.load import opened
from tests.topologies.redis_processes import SLOTS, Node, client, follow, running, until

Change = Callable[[Node], Awaitable[object]]


@asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[tuple[Node, Ledger]]:
    """A server, and a ledger on it with one session that has a slot."""
    node = Node({name.replace("_", "-"): value for name, value in settings.items()})
    async with running(node), opened(f"redis://127.0.0.1:{node.port}") as ledger:
        await ledger.adopt("s1", "o1", "", SessionState.preparing, ["p1"])
        yield node, ledger


async def refusal(ledger: Ledger) -> str:
    with pytest.raises(LedgerUnavailable) as raised:
        await ledger.reserve("s1", "o2", 3, ["p2"])
    assert (raised.value.status, raised.value.reason) == (503, "ledger_unavailable")
    return raised.value.detail


async def serves_again(ledger: Ledger) -> None:
    """And nothing of what was refused was done."""

    async def served() -> bool:
        try:
            return (await ledger.reserve("s1", "o3", 2, ["p3"])).said == "held"
        except LedgerUnavailable:
            return False

    await until(served)
    snapshot = await ledger.snapshot("s1")
    assert snapshot is not None
    assert {slot.product_id for slot in snapshot.slots} == {"p1", "p3"}


async def full(node: Node) -> None:
    await node.ask("CONFIG", "SET", "maxmemory", "1")


async def no_disk(node: Node) -> None:
    await node.ask("CONFIG", "SET", "save", "3600 1")
    (node.folder / "dump.rdb").mkdir()
    await node.ask("BGSAVE")
    await until(lambda: _save_failed(node))


async def _save_failed(node: Node) -> bool:
    return bool((await node.info("persistence"))["rdb_last_bgsave_status"] == "err")


def setting(name: str, value: str) -> Change:
    return lambda node: node.ask("CONFIG", "SET", name, value)


REFUSING: dict[str, tuple[Change, Change]] = {
    "OOM": (full, setting("maxmemory", "0")),
    "MISCONF": (no_disk, setting("stop-writes-on-bgsave-error", "no")),
    "NOREPLICAS": (setting("min-replicas-to-write", "1"), setting("min-replicas-to-write", "0")),
}


@pytest.mark.parametrize("code", REFUSING)
async def test_a_server_that_takes_no_writes_still_answers_questions(code: str) -> None:
    begin, end = REFUSING[code]
    async with serving() as (node, ledger):
        await begin(node)
        for _ in range(4):
            assert await refusal(ledger) == MEANINGS[code].detail
        assert await ledger.used("s1") == b"1"
        with pytest.raises(LedgerUnavailable) as not_ready:
            await ledger.ping()
        assert not_ready.value.detail == MEANINGS[code].detail
        await end(node)
        await serves_again(ledger)


async def test_a_server_held_up_by_a_script_is_asked_again_when_it_is_over() -> None:
    async with serving(lua_time_limit="20") as (node, ledger):
        stranger = client(node.port)
        looping = asyncio.ensure_future(stranger.execute_command("EVAL", "while true do end", 0))
        try:
            await until(lambda: _busy(node))
            for _ in range(4):
                assert (await refusal(ledger)).startswith(MEANINGS["BUSY"].detail)
            assert not ledger.available
            await node.ask("SCRIPT", "KILL")
            with pytest.raises(RedisError):
                await looping
            await serves_again(ledger)
        finally:
            await stranger.aclose()


async def _busy(node: Node) -> bool:
    try:
        await node.ask("PING")
    except ResponseError as error:
        return "BUSY" in str(error) or "busy" in str(error)
    return False


async def test_a_server_that_loads_is_asked_again_when_it_has_loaded() -> None:
    settings = {"key-load-delay": "20000", "loading-process-events-interval-bytes": "1024"}
    node = Node({"rdbcompression": "no"})
    async with running(node), opened(f"redis://127.0.0.1:{node.port}") as ledger:
        await ledger.adopt("s1", "o1", "", SessionState.preparing, ["p1"])
        if str((await node.info("server"))["redis_version"]).startswith("6."):
            pytest.skip("a Redis before 7 can't be made to load slowly")
        await node.ask("EVAL", "for i = 1, 500 do redis.call('SET', 'key' .. i, string.rep('x', 1024)) end", 0)
        await node.ask("SAVE")
        node.kill()
        node.configure(settings)
        node.spawn()
        await until(lambda: _refused_with(ledger, "LOADING"))
        await node.ask("CONFIG", "SET", "key-load-delay", "0")
        await serves_again(ledger)


async def _refused_with(ledger: Ledger, code: str) -> bool:
    return (await refusal(ledger)).startswith(MEANINGS[code].detail)


async def test_scripts_that_a_server_forgets_are_sent_again() -> None:
    async with serving() as (node, ledger):
        for operation in ("o2", "o3"):
            await node.ask("SCRIPT", "FLUSH")
            assert (await ledger.reserve("s1", operation, 3, ["p2"])).said == "held"
            await node.ask("SCRIPT", "FLUSH")
            await ledger.commit("s1", operation, "attached", [Step("t", "p2")])
        assert await node.errors("NOSCRIPT") >= 4


async def test_a_replica_is_no_place_to_write_until_it_is_promoted() -> None:
    async with serving() as (node, ledger), running(Node({})) as (replica,):
        await follow(replica, node.port)
        async with opened(f"redis://127.0.0.1:{replica.port}") as there:
            assert (await refusal(there)).startswith(MEANINGS["READONLY"].detail)
            assert (await replica.info("commandstats"))["cmdstat_eval"]["calls"] == 2, (
                "asked again once, for it may have been promoted meanwhile"
            )
            await replica.ask("CONFIG", "SET", "replica-serve-stale-data", "no")
            await replica.ask("REPLICAOF", "127.0.0.1", 1)
            await until(lambda: _refused_with(there, "MASTERDOWN"))
            await replica.ask("REPLICAOF", "NO", "ONE")
            await serves_again(there)
        assert ledger.available


async def test_a_cluster_without_some_of_its_slots_serves_nothing() -> None:
    async with running(Node({"cluster-enabled": "yes"})) as (node,):
        await node.ask("CLUSTER", "ADDSLOTS", *range(SLOTS - 1))
        for url, told in (
            (f"redis+cluster://127.0.0.1:{node.port}", MEANINGS["CLUSTERDOWN"].detail),
            (f"redis://127.0.0.1:{node.port}", "redis+cluster://"),
        ):
            async with opened(url) as ledger:
                assert told in await refusal(ledger)


async def test_a_plain_server_is_no_cluster() -> None:
    async with running(Node({})) as (node,), opened(f"redis+cluster://127.0.0.1:{node.port}") as ledger:
        assert await refusal(ledger) == MEANINGS["NOCLUSTER"].detail


async def test_a_server_without_a_place_for_a_client_says_so() -> None:
    async with running(Node({})) as (node,), opened(f"redis://127.0.0.1:{node.port}") as ledger:
        await node.ask("CONFIG", "SET", "maxclients", 1)
        assert await refusal(ledger) == MEANINGS["MAXCLIENTS"].detail


async def test_what_no_table_has_is_told_as_the_server_says_it() -> None:
    node = Node({"rename-command": 'EVALSHA ""'})
    async with running(node), opened(f"redis://127.0.0.1:{node.port}") as ledger:
        said = await refusal(ledger)
        assert said.startswith("Redis refused a ledger step: ")
        assert "unknown command" in said
        assert ledger.available
