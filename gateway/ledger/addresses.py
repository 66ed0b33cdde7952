"""`ledger.url` taken apart: which servers there are, and how one is connected to. redis-py does both.

One server (redis, rediss, unix), one behind Sentinel, or a Cluster. What they make are redis-py's connections, without
a time limit of their own: whoever uses one limits the whole of what it does, so that nothing adds up.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from gateway.ledger import tls
from gateway.ledger.replies import reason_of
from gateway.tasks import Tasks

MAX_STARTUP_NODES = 64

Address = tuple[str, int]


class Servers(Protocol):
    """`cluster`: whether the servers share the keys among them, and a map says which has which."""

    cluster: bool

    def server_of(self, key: str) -> str | None:
        """The name of the server that has a key; None where none is known."""

    def masters(self) -> list[str]:
        """Every server that there is to write to, as far as known."""

    async def open(self, server: str) -> AbstractConnection:
        """A connection to it, not yet connected."""

    async def scan(self, suspect: str | None) -> None:
        """Learn the map anew; `suspect` is asked last. Raises what redis-py raises."""

    async def close(self) -> None: ...


class One:
    """A single server: always the same, or whoever Sentinel says is the master now."""

    cluster = False

    def __init__(self, connection: Callable[..., AbstractConnection], master: _Master | None = None) -> None:
        self._connection = connection
        self._master = master

    def server_of(self, key: str) -> str | None:
        return "redis"

    def masters(self) -> list[str]:
        return ["redis"]

    async def open(self, server: str) -> AbstractConnection:
        if self._master is None:
            return self._connection()
        host, port = await self._master.address()
        return self._connection(host=host, port=port)

    async def scan(self, suspect: str | None) -> None:
        """There is no map."""

    async def close(self) -> None:
        if self._master is not None:
            await self._master.close()


class _Master:
    """Who is the master, by the word of most sentinels.

    redis-py asks them one after the other, each with its own time limit, and believes the first: one that is stalled
    would hold up every attempt, and one that missed a failover would lead back to the old master. Here all are asked
    at once, and the first address that more than half of them give is it; where fewer answer, that which most give.
    """

    def __init__(self, sentinels: list[redis.Redis], service: str, limit_seconds: float) -> None:
        self._sentinels = sentinels
        self._service = service
        self._limit_seconds = limit_seconds
        self._problem = ""
        self._tasks = Tasks("sentinels")

    async def address(self) -> Address:
        """Raises `MasterNotFoundError` where no sentinel knows."""
        self._problem = "none watches it"
        asked = {self._tasks.start(self._ask(client)) for client in self._sentinels}
        votes: Counter[Address] = Counter()
        enough = len(asked) // 2 + 1
        try:
            async with asyncio.timeout(self._limit_seconds):
                for answer in asyncio.as_completed(asked):
                    address = await answer
                    if address is not None:
                        votes[address] += 1
                        if votes[address] >= enough:
                            break
        except TimeoutError:
            pass
        finally:
            for one in asked:
                one.cancel()
        if not votes:
            raise MasterNotFoundError(f"No sentinel knows a master of {self._service!r}: {self._problem}")
        return votes.most_common(1)[0][0]

    async def _ask(self, client: redis.Redis) -> Address | None:
        try:
            found: Any = await client.sentinel_get_master_addr_by_name(self._service)
        except (RedisError, OSError, tls.Files) as error:
            self._problem = reason_of(error) or str(error)
            return None
        return (found[0], found[1]) if found else None

    async def close(self) -> None:
        await self._tasks.cancel()
        for client in self._sentinels:
            await client.aclose()


class Cluster:
    """A Cluster's masters and their slots, kept by redis-py's own map. Calls don't use its client: see `lane`."""

    cluster = True

    def __init__(self, seeds: list[Address], options: Mapping[str, Any], limit_seconds: float) -> None:
        nodes = [ClusterNode(host, port) for host, port in seeds]
        connection = dict(options)
        kind = connection.pop("connection_class")
        connection["ssl"] = kind is not Connection
        connection |= {"socket_timeout": limit_seconds, "socket_connect_timeout": limit_seconds}
        self._client = RedisCluster(
            startup_nodes=nodes,
            # A slot without a master concerns only the calls that need it.
            require_full_coverage=False,
            # Done in `scan`, so that the addresses of the configuration are never forgotten.
            dynamic_startup_nodes=False,
            retry=Retry(NoBackoff(), 0),
            **connection,
        )
        self._map = self._client.nodes_manager
        self._seeds = dict(self._map.startup_nodes)
        self._map.connection_kwargs["connection_class"] = kind
        for node in self._seeds.values():
            node.connection_class = kind

    def server_of(self, key: str) -> str | None:
        nodes = self._map.slots_cache.get(key_slot(key.encode()))
        return str(nodes[0].name) if nodes else None

    def masters(self) -> list[str]:
        return sorted({str(nodes[0].name) for nodes in self._map.slots_cache.values()})

    async def open(self, server: str) -> AbstractConnection:
        host, _, port = server.rpartition(":")
        options = self._map.connection_kwargs | {"host": host, "port": int(port), "socket_timeout": None}
        del options["max_connections"], options["response_callbacks"]
        made: AbstractConnection = options.pop("connection_class")(**options)
        return made

    async def scan(self, suspect: str | None) -> None:
        try:
            await self._map.initialize(last_failed_node_name=suspect)
        finally:
            known = dict(list(self._map.nodes_cache.items())[:MAX_STARTUP_NODES]) | self._seeds
            before, self._map.startup_nodes = self._map.startup_nodes, known
            for name, node in before.items():
                if known.get(name) is not node:
                    with suppress(RedisError, OSError):
                        await node.disconnect()

    async def close(self) -> None:
        for which in ("nodes_cache", "startup_nodes"):
            with suppress(RedisError, OSError):
                await self._map.aclose(which)


def servers(url: str, timeout_seconds: float) -> Servers:
    """The servers of a `ledger.url`: redis, rediss, unix, redis+sentinel://host:port,host:port/service, redis+cluster.

    `?tls=true` on the last two means TLS, and `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs` and
    `ssl_check_hostname` on all say how. User and password go to Redis itself; `sentinel_username` and
    `sentinel_password` to the sentinels.
    """
    parts = urlsplit(url)
    plain = {
        "protocol": 2,
        "driver_info": None,
        "socket_connect_timeout": timeout_seconds,
        "socket_timeout": None,
    }
    if parts.scheme not in ("redis+sentinel", "redis+cluster"):
        options: dict[str, Any] = {**parse_url(url), **plain}
        kind: Callable[..., AbstractConnection] = options.pop("connection_class", Connection)
        if kind is SSLConnection:
            kind = tls.shared()
        return One(lambda: kind(**options))

    query = dict(parse_qsl(parts.query))
    secured = _tls_options(query) if query.get("tls") == "true" else {}
    made: type[Connection] = tls.shared() if query.get("tls") == "true" else Connection
    options = _credentials(parts.netloc) | plain | secured
    if parts.scheme == "redis+cluster":
        del options["socket_timeout"], options["socket_connect_timeout"]
        options |= {"connection_class": made}
        return Cluster(_nodes(parts.netloc, 6379), options, timeout_seconds / 2)

    service = unquote(parts.path.strip("/"))
    own = {name.removeprefix("sentinel_"): value for name, value in query.items() if name.startswith("sentinel_")}
    limit = timeout_seconds / 2
    asking = plain | own | secured | {"socket_timeout": limit, "socket_connect_timeout": limit}
    asking |= {"retry": Retry(NoBackoff(), 0), "decode_responses": True, "connection_class": made}
    sentinels = [
        redis.Redis.from_pool(redis.ConnectionPool(host=host, port=port, **asking))
        for host, port in _nodes(parts.netloc, 26379)
    ]
    return One(lambda **where: made(**options, **where), _Master(sentinels, service, limit))


def _nodes(netloc: str, default_port: int) -> list[Address]:
    """`host:port,host:port` of an address, which urlsplit can't take apart."""
    nodes = []
    for node in netloc.rpartition("@")[2].split(","):
        parts = urlsplit(f"//{node}")
        nodes.append((parts.hostname or "", parts.port or default_port))
    return nodes


def _credentials(netloc: str) -> dict[str, Any]:
    user, _, password = netloc.rpartition("@")[0].partition(":")
    found = {"username": unquote(user) or None, "password": unquote(password) or None}
    return {name: value for name, value in found.items() if value}


def _tls_options(query: Mapping[str, str]) -> dict[str, Any]:
    """As redis-py reads them from an address of its own."""
    options = dict(parse_url("rediss://?" + urlencode({k: v for k, v in query.items() if k.startswith("ssl_")})))
    return {name: value for name, value in options.items() if name.startswith("ssl_")}
