"""One Redis server: with a password, with a user that may do no more than the ledger needs, with settings that break
the promise."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.errors import LedgerUnavailable
from gateway.ledger.replies import MEANINGS
from tests.topologies.all_steps import take_all_steps
from tests.topologies.load import opened
from tests.topologies.redis_processes import Node, follow, running, until

TIMEOUT_SECONDS = 2.0


def rule() -> list[str]:
    """What deploy/gateway.toml says that a user of the gateway's own needs."""
    text = (Path(__file__).parents[2] / "deploy" / "gateway.toml").read_text()
    found = re.search(r"ACL SETUSER attachgate (.*(?:\n#   .*)*)", text)
    assert found is not None
    return found[1].replace("\n#", "").split()


async def allow(node: Node, *more: str, without: str = "") -> None:
    """Let the user `attachgate` do what the rule says, and `more`, but not what comes `without`."""
    words = [word for word in rule() if word != without]
    await node.ask("ACL", "SETUSER", "attachgate", "reset", *words, *more)


async def denied(node: Node) -> list[str]:
    """What the users of a server were denied."""
    return [str(entry[b"object"]) for entry in await node.ask("ACL", "LOG")]


async def commands_run(node: Node) -> set[str]:
    """The commands that a server ran, subcommands as config|get."""
    return {name.removeprefix("cmdstat_") for name in await node.info("commandstats")}


@asynccontextmanager
async def server(**settings: str) -> AsyncIterator[Node]:
    async with running(Node({name.replace("_", "-"): value for name, value in settings.items()})) as (node,):
        yield node


def url_of(node: Node, login: str = "") -> str:
    return f"redis://{login}127.0.0.1:{node.port}/0"


async def test_a_password_is_enough_and_a_wrong_one_is_told() -> None:
    async with server(requirepass="s3cret:/@") as node:
        async with opened(
            url_of(node, ":s3cret%3A%2F%40@"), timeout_seconds=TIMEOUT_SECONDS, late_apply_seconds=0.0
        ) as ledger:
            await take_all_steps(ledger)
        for login, code in (("", "NOAUTH"), (":wrong@", "WRONGPASS"), ("nobody:s3cret@", "WRONGPASS")):
            async with opened(url_of(node, login), timeout_seconds=TIMEOUT_SECONDS, late_apply_seconds=0.0) as ledger:
                with pytest.raises(LedgerUnavailable) as raised:
                    await ledger.ping()
                assert raised.value.detail == MEANINGS[code].detail


async def test_a_user_with_the_rule_that_is_documented_may_do_all_that_the_gateway_does() -> None:
    async with running(Node({}), Node({})) as (node, replica):
        await follow(replica, node.port)
        await allow(node)
        login = url_of(node, "attachgate:PASSWORD@")
        async with opened(
            login, durability="replicated", timeout_seconds=TIMEOUT_SECONDS, late_apply_seconds=0.0
        ) as ledger:
            await take_all_steps(ledger, "s1")
            await node.ask("SCRIPT", "FLUSH")
            await take_all_steps(ledger, "s2")
        assert await denied(node) == []


async def test_nothing_in_the_rule_is_idle() -> None:
    """Whatever it grants, the gateway uses; what only a Cluster or Sentinel needs is tested there."""
    async with running(Node({}), Node({})) as (node, replica):
        await follow(replica, node.port)
        await node.ask("CONFIG", "RESETSTAT")
        async with opened(
            url_of(node), durability="replicated", timeout_seconds=TIMEOUT_SECONDS, late_apply_seconds=0.0
        ) as ledger:
            await node.ask("SCRIPT", "FLUSH")
            await take_all_steps(ledger)
        granted = {word.removeprefix("+").partition("|")[0] for word in rule() if word.startswith("+")}
        ran = {name.partition("|")[0] for name in await commands_run(node)}
        assert granted - ran == {"asking", "cluster"}


async def test_a_user_may_not_read_or_write_anything_else() -> None:
    async with server() as node:
        await allow(node)
        await node.ask("SET", "other", "x")
        said = []
        for command in (
            ("GET", "other"),
            ("HGET", "other", "f"),
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "SET", "a", "b"),
        ):
            said.append(await _as_user(node, *command))
        assert all("NOPERM" in one or "permission" in one.lower() for one in said), said


async def _as_user(node: Node, *command: str) -> str:
    from tests.topologies.redis_processes import client

    user = client(node.port, username="attachgate", password="PASSWORD")
    try:
        return str(await user.execute_command(*command))
    except Exception as error:
        return str(error)
    finally:
        await user.aclose()


@pytest.mark.parametrize("without", [word for word in rule() if word.startswith("+h") or word in ("+evalsha", "~ag:*")])
async def test_a_rule_that_lacks_something_is_told_and_not_worked_around(without: str) -> None:
    async with server() as node:
        await allow(node, without=without)
        async with opened(
            url_of(node, "attachgate:PASSWORD@"), timeout_seconds=TIMEOUT_SECONDS, late_apply_seconds=0.0
        ) as ledger:
            with pytest.raises(LedgerUnavailable) as raised:
                await take_all_steps(ledger)
            assert raised.value.detail == MEANINGS["NOPERM"].detail


async def test_settings_that_would_break_the_promise_are_said_at_start() -> None:
    async with server(**{"maxmemory-policy": "allkeys-lru"}) as node, opened(url_of(node)) as ledger:
        said = await ledger.warnings()
        assert any("maxmemory-policy allkeys-lru" in one and "noeviction" in one for one in said)
        assert any("saves nothing to disk" in one for one in said)
        await node.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await node.ask("CONFIG", "SET", "appendonly", "yes")
        await until(lambda: _no_rewrite(node))
        assert await ledger.warnings() == []


async def _no_rewrite(node: Node) -> bool:
    return int((await node.info("persistence"))["aof_enabled"]) == 1


async def test_a_replica_and_a_master_without_one_are_said_at_start() -> None:
    async with running(Node({"appendonly": "yes"}), Node({"appendonly": "yes"})) as (node, replica):
        async with opened(url_of(node), durability="replicated") as ledger:
            assert any("has 0 replicas" in one for one in await ledger.warnings())
            await follow(replica, node.port)
            assert await ledger.warnings() == []
        async with opened(url_of(node), durability="replicated", replicas=2) as ledger:
            assert any("has 1 replicas" in one and "no slot can be reserved" in one for one in await ledger.warnings())
        async with opened(url_of(replica)) as ledger:
            assert any("is a replica" in one for one in await ledger.warnings())


async def test_many_ledgers_share_a_server_by_their_prefix() -> None:
    async with server() as node, opened(url_of(node), late_apply_seconds=0.0) as ledger:
        await take_all_steps(ledger)
        keys = await node.ask("KEYS", "*")
        assert keys
        assert all(key.startswith(b"ag:{") for key in keys)
