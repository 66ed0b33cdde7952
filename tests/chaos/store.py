"""Where the ledger is kept during a run: one Redis, or a master with its replica and three Sentinels.

Both are real processes. A standalone Redis writes every command to its file before it answers, so a kill forgets
nothing. Behind Sentinels a kill fails over, and only what the replica has survives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import redis

from gateway.tasks import Tasks
from tests.chaos.link import Link
from tests.chaos.processes import RedisProcess
from tests.ports import free_port

SENTINELS: Final = 3
SERVICE: Final = "ledger"
DOWN_AFTER_MS: Final = 700
SETTLE_SECONDS: Final = 30.0
KEEP_SECONDS: Final = 0.5


class Store(Protocol):
    durability: str
    links: list[Link]

    async def begin(self) -> None: ...
    def url(self, gateway: int) -> str: ...
    async def handle(self, kind: str, seconds: float) -> None: ...
    async def heal(self) -> None: ...
    @property
    def client(self) -> redis.Redis: ...
    async def close(self) -> None: ...


async def _forget_scripts(node: RedisProcess) -> None:
    try:
        await asyncio.to_thread(node.client.script_flush)
    except redis.RedisError:
        return


async def _pause(node: RedisProcess, seconds: float) -> None:
    node.pause()
    await asyncio.sleep(seconds)
    node.resume()


class Standalone:
    """One Redis; each gateway has a link of its own to it."""

    durability = "primary"

    def __init__(self, folder: Path, gateways: int) -> None:
        self._node = RedisProcess("redis", folder)
        self.links = [Link(f"store {number}", free_port(), self._node.port) for number in range(gateways)]

    async def begin(self) -> None:
        await self._node.begin()
        for link in self.links:
            await link.start()

    def url(self, gateway: int) -> str:
        return f"redis://127.0.0.1:{self.links[gateway].port}/0"

    async def handle(self, kind: str, seconds: float) -> None:
        if kind == "scripts forgotten":
            await _forget_scripts(self._node)
        elif kind == "store paused":
            await _pause(self._node, seconds)
        else:
            await self._node.kill()
            await asyncio.sleep(seconds)
            await self._node.begin()

    async def heal(self) -> None:
        self._node.resume()
        if not self._node.running:
            await self._node.begin()

    @property
    def client(self) -> redis.Redis:
        return self._node.client

    async def close(self) -> None:
        for link in self.links:
            await link.close()
        self._node.client.close()
        await self._node.kill()


class Sentinels:
    """A master and its replica, each behind a link that also the Sentinels and the replication go through."""

    durability = "replicated"

    def __init__(self, folder: Path, gateways: int) -> None:
        self._folder = folder
        self._gateways = gateways
        self._nodes: list[RedisProcess] = []
        self._sentinels: list[RedisProcess] = []
        self._links: list[Link] = []
        self._tasks = Tasks("store")
        self.links: list[Link] = []

    async def begin(self) -> None:
        for number in range(2):
            link = Link(f"store {number}", free_port(), 0)
            await link.start()
            announce = ["replica-announce-ip 127.0.0.1", f"replica-announce-port {link.port}"]
            follow = [f"replicaof 127.0.0.1 {self._links[0].port}"] if number else []
            common = ["repl-diskless-sync yes", "repl-diskless-sync-delay 0", "repl-timeout 5"]
            node = RedisProcess(f"redis-{number}", self._folder, (*announce, *follow, *common))
            link.target = node.port
            self._links.append(link)
            self._nodes.append(node)
            await node.begin()
        # As many names as gateways, so that a plan fits both kinds of store.
        self.links = [self._links[number % 2] for number in range(self._gateways)]
        for number in range(SENTINELS):
            settings = (
                f"sentinel monitor {SERVICE} 127.0.0.1 {self._links[0].port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
                f"sentinel failover-timeout {SERVICE} 3000",
                f"sentinel parallel-syncs {SERVICE} 1",
            )
            sentinel = RedisProcess(f"sentinel-{number}", self._folder, settings, sentinel=True)
            self._sentinels.append(sentinel)
            await sentinel.begin()
        await self._until_replicated()
        self._tasks.start(self._keep_two())

    def url(self, gateway: int) -> str:
        nodes = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self._sentinels)
        return f"redis+sentinel://{nodes}/{SERVICE}"

    async def handle(self, kind: str, seconds: float) -> None:
        master = self._node_of(self._master_port())
        if kind == "scripts forgotten":
            await _forget_scripts(master)
        elif kind == "store paused":
            await _pause(master, seconds)
        elif kind == "store failed over":
            await asyncio.to_thread(self._ask_failover)
        else:
            await master.kill()
            await asyncio.sleep(seconds + 2 * DOWN_AFTER_MS / 1000)
            await master.begin()

    async def _keep_two(self) -> None:
        """A master that was replaced follows the new one soon, as an operator beside the Sentinels sees to. They tell
        it after 10 s, and until then nothing would be replicated. Only where all of them have agreed for two looks:
        what they promote, or have just promoted, must not follow the one that it replaces."""
        agreed: int | None = None
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            before, agreed = agreed, None
            with suppress(redis.RedisError, AssertionError):
                agreed = await asyncio.to_thread(self._agreed_port)
                if agreed is not None and agreed == before:
                    await asyncio.to_thread(self._follow, agreed)

    def _agreed_port(self) -> int | None:
        """Of the master that every Sentinel names, none of which is replacing it."""
        told = [sentinel.client.sentinel_master(SERVICE) for sentinel in self._sentinels]
        ports = {int(master["port"]) for master in told}
        calm = not any("failover_in_progress" in master["flags"] for master in told)
        return ports.pop() if calm and len(ports) == 1 else None

    def _follow(self, port: int) -> None:
        current = self._node_of(port)
        with redis.Redis(port=current.port, socket_timeout=0.3) as client:
            if client.role()[0] != b"master":
                return
        for node in self._nodes:
            with redis.Redis(port=node.port, socket_timeout=0.3) as client:
                stray = node is not current and node.running and not node.paused and client.role()[0] == b"master"
                # To ask a node that is paused took its time: whom they name may be another by now.
                if stray and self._agreed_port() == port:
                    client.execute_command("REPLICAOF", "127.0.0.1", port)

    async def heal(self) -> None:
        for node in (*self._nodes, *self._sentinels):
            node.resume()
            if not node.running:
                await node.begin()
        await self._until_replicated()

    @property
    def client(self) -> redis.Redis:
        return self._node_of(self._master_port()).client

    async def close(self) -> None:
        await self._tasks.cancel()
        for link in self._links:
            await link.close()
        for process in (*self._sentinels, *self._nodes):
            process.client.close()
            await process.kill()

    def _ask_failover(self) -> None:
        try:
            self._sentinels[0].client.execute_command("SENTINEL", "FAILOVER", SERVICE)
        except redis.RedisError:
            return

    def _master_port(self) -> int:
        for sentinel in self._sentinels:
            try:
                found = sentinel.client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            except redis.RedisError:
                continue
            if found:
                return int(found[1])
        raise AssertionError("no Sentinel names a master")

    def _node_of(self, link_port: int) -> RedisProcess:
        return next(
            node for node, link in zip(self._nodes, self._links, strict=True) if link_port in (link.port, node.port)
        )

    async def _until_replicated(self) -> None:
        until = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while True:
            try:
                told: Sequence[object] = self.client.role()  # type: ignore[assignment]
                if told[0] == b"master" and told[2]:
                    return
            except redis.RedisError:
                pass
            assert asyncio.get_running_loop().time() < until, "no replica follows the master"
            await asyncio.sleep(0.1)
