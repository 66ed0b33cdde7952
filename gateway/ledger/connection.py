"""The way to Redis: scripts of one loop turn go out in one pipeline, and a dead Redis costs nobody time.

Calls of a loop turn wait together and are sent as one pipeline; the next pipeline leaves when the answers are in.
So calls of one gateway reach a session in the order in which they were made, and the busier the gateway is, the
fewer round trips it pays for. Standalone, Sentinel and Cluster are redis-py's own clients.

After `OPEN_AFTER` failures in a row the breaker is open: calls fail at once, except one probe every
`PROBE_SECONDS`. Nothing is retried here: `steps` knows what may be repeated.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.errors import LedgerUnavailable
from gateway.tasks import Tasks

OPEN_AFTER = 3
PROBE_SECONDS = 0.25
MAX_WAITING = 10_000
MAX_PIPELINE = 256


class LostAnswer(LedgerUnavailable):
    """The connection broke: the script may have run. Whoever may repeat it does."""


class Script:
    """One script: its text behind the shared one of `slots.lua`, and the hash that Redis knows it by."""

    def __init__(self, name: str, *, shared: bool = True) -> None:
        folder = files(__package__)
        text = (folder / f"{name}.lua").read_text()
        self.name = name
        self.text = (folder / "slots.lua").read_text() + "\n" + text if shared else text
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class _Call:
    __slots__ = ("arguments", "future", "script")

    def __init__(self, script: Script | None, arguments: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        self.script, self.arguments, self.future = script, arguments, future

    @property
    def command(self) -> tuple[Any, ...]:
        return self.arguments if self.script is None else ("EVALSHA", self.script.sha, *self.arguments)

    def settle(self, answer: Any) -> None:
        if self.future.done():
            return
        if isinstance(answer, BaseException):
            self.future.set_exception(_as_ours(answer))
        else:
            self.future.set_result(answer)


def _as_ours(error: BaseException) -> LedgerUnavailable:
    if isinstance(error, LedgerUnavailable):
        return error
    if isinstance(error, (RedisTimeoutError, asyncio.TimeoutError)):
        return LedgerUnavailable("Redis did not answer within ledger.timeout_seconds; see whether it is overloaded.")
    if isinstance(error, (RedisConnectionError, OSError)):
        return LostAnswer(f"Redis at ledger.url can't be reached ({type(error).__name__}); see whether it runs.")
    return LedgerUnavailable(f"Redis refused a ledger step: {str(error)[:200]}")


class Connection:
    """Calls scripts and commands on Redis. `clock`: monotonic seconds, for the breaker."""

    def __init__(self, client: redis.Redis | RedisCluster, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._waiting: list[_Call] = []
        self._sending = False
        self._failures = 0
        self._probe_at = 0.0
        self._tasks = Tasks("ledger")

    @property
    def available(self) -> bool:
        """Whether the breaker is closed."""
        return self._failures < OPEN_AFTER

    def call(self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]) -> asyncio.Future[Any]:
        """Run a script; the future's failures are `LedgerUnavailable`, or `LostAnswer` where it may have run."""
        return self._submit(script, (len(keys), *keys, *arguments))

    def command(self, *command: str | int) -> asyncio.Future[Any]:
        """A plain command with its key in second place (XRANGE, XREAD …)."""
        return self._submit(None, command)

    def _submit(self, script: Script | None, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        refusal = self._refusal()
        if refusal:
            future.set_exception(LedgerUnavailable(refusal))
            return future
        self._waiting.append(_Call(script, arguments, future))
        if not self._sending:
            self._sending = True
            self._tasks.start(self._send())
        return future

    def _refusal(self) -> str | None:
        if len(self._waiting) >= MAX_WAITING:
            return f"More than {MAX_WAITING} ledger steps wait for Redis; it is slower than the requests come."
        if self._failures >= OPEN_AFTER:
            now = self._clock()
            if now < self._probe_at:
                return "Redis at ledger.url has failed repeatedly; it is asked again shortly."
            self._probe_at = now + PROBE_SECONDS
        return None

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_PIPELINE], self._waiting[MAX_PIPELINE:]
                try:
                    answers = await self._pipeline([call.command for call in batch])
                    await self._load_missing(batch, answers)
                except (RedisError, OSError) as error:
                    self._failed(batch, error)
                    continue
                self._failures = 0
                for call, answer in zip(batch, answers, strict=True):
                    call.settle(answer)
        finally:
            self._sending = False

    def _failed(self, batch: list[_Call], error: BaseException) -> None:
        self._failures += 1
        self._probe_at = self._clock() + PROBE_SECONDS
        waiting, self._waiting = self._waiting, []
        for call in batch:
            call.settle(error)
        never_sent = LedgerUnavailable(str(_as_ours(error)))
        for call in waiting:
            call.settle(never_sent)

    async def _pipeline(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        if isinstance(self._client, RedisCluster):
            cluster_pipe = self._client.pipeline()
            for command in commands:
                cluster_pipe.execute_command(*command)
            return list(await cluster_pipe.execute(raise_on_error=False))
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))

    async def _load_missing(self, batch: list[_Call], answers: list[Any]) -> None:
        """Scripts that Redis does not know (started afresh, failed over) are sent whole, once."""
        missing = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if not missing:
            return
        whole: list[tuple[Any, ...]] = []
        for n in missing:
            script = batch[n].script
            assert script is not None
            whole.append(("EVAL", script.text, *batch[n].arguments))
        for n, answer in zip(missing, await self._pipeline(whole), strict=True):
            answers[n] = answer

    async def warnings(self) -> list[str]:
        """What about this Redis would break the promise; to be said at start."""
        try:
            policy = await self._client.config_get("maxmemory-policy")
        except ResponseError:
            return []
        except (RedisError, OSError) as error:
            raise _as_ours(error) from None
        value = next(iter(policy.values()), "noeviction") if isinstance(policy, dict) else "noeviction"
        name = value.decode() if isinstance(value, bytes) else str(value)
        if name == "noeviction":
            return []
        return [f"Redis' maxmemory-policy is {name}: it may throw sessions away; set it to noeviction."]

    async def close(self) -> None:
        await self._tasks.drain(1.0)
        await self._tasks.cancel()
        await self._client.aclose()


def connect(url: str, timeout_seconds: float, clock: Callable[[], float]) -> Connection:
    """A connection for `ledger.url`: redis, rediss, unix, redis+sentinel://host:port,host:port/service, redis+cluster.

    Connects at the first call. User and password in the address go to Redis itself.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    parts = urlsplit(url)
    if parts.scheme == "redis+cluster":
        return Connection(_cluster(url, options), clock)
    if parts.scheme == "redis+sentinel":
        return Connection(_sentinel(url, options), clock)
    return Connection(redis.Redis.from_url(url, **options), clock)


def _nodes(url: str, default_port: int) -> list[tuple[str, int]]:
    """`host:port,host:port` of an address, which urlsplit can't take apart."""
    nodes = []
    for node in urlsplit(url).netloc.rpartition("@")[2].split(","):
        host, _, port = node.rpartition(":") if ":" in node else (node, "", str(default_port))
        nodes.append((host.strip("[]"), int(port)))
    return nodes


def _credentials(url: str) -> dict[str, Any]:
    user, _, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    found = {"username": unquote(user) or None, "password": unquote(password) or None}
    return {name: value for name, value in found.items() if value}


def _cluster(url: str, options: dict[str, Any]) -> RedisCluster:
    from redis.asyncio.cluster import ClusterNode

    nodes = [ClusterNode(host, port) for host, port in _nodes(url, 6379)]
    tls = parse_qs(urlsplit(url).query).get("tls") == ["true"]
    del options["retry"]
    return RedisCluster(startup_nodes=nodes, ssl=tls, **_credentials(url), **options)


def _sentinel(url: str, options: dict[str, Any]) -> redis.Redis:
    service = urlsplit(url).path.lstrip("/").split("/")[0]
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        _nodes(url, 26379), sentinel_kwargs=dict(options)
    )
    master: redis.Redis = sentinel.master_for(service, **_credentials(url), **options)
    return master
