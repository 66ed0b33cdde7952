"""The way to Redis: each call finds the server that has its key, wherever that is now, and always an end.

A call goes to its server's lane (`lane`: pipelines, time limits, breaker). What a server did not run, because the key
lives elsewhere now or is on its way, is asked again where and when `replies` says, within the call's time. One server
of a Cluster that is away costs the others nothing. A lost answer is not repeated here: `steps` knows what may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from redis.exceptions import AskError, ResponseError

from gateway.errors import LedgerUnavailable
from gateway.ledger import addresses, fitness
from gateway.ledger.call import Call
from gateway.ledger.lane import MAX_WAITING, Lane
from gateway.ledger.replies import Meaning, Remedy, reason_of
from gateway.ledger.scripts import Script
from gateway.tasks import Tasks

PAUSE_SECONDS = 0.02
SCAN_PAUSE_SECONDS = 0.25
SCAN_SECONDS = 2.0
AT_ONCE = 2
"""So often a call is asked again elsewhere without a pause; servers that disagree would otherwise play ball with it."""

_NO_CLUSTER = "The Redis Cluster at ledger.url can't be reached; see whether it runs, and the log for the cause."
_NO_MASTER = (
    "The Redis Cluster has no master for this session now; see `CLUSTER INFO`, and whether a replica takes over."
)
_BUSY = f"More than {MAX_WAITING} ledger steps wait for the Redis Cluster; see whether it can be reached."
_CLOSED = "The gateway is being stopped, and asks Redis nothing any more."

log = structlog.get_logger(__name__)


class Connection:
    """Calls scripts and commands on Redis. `clock`: monotonic seconds."""

    def __init__(
        self, servers: addresses.Servers, timeout_seconds: float, clock: Callable[[], float], replicas: int
    ) -> None:
        self._servers = servers
        self._replicas = replicas
        self._limit_seconds = timeout_seconds
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._unrouted: list[Call] = []
        self._scanned = not servers.cluster
        self._scanned_at = float("-inf")
        self._scan_failed = False
        self._no_cluster = _NO_CLUSTER
        self._scanning: asyncio.Task[None] | None = None
        self._suspect: str | None = None
        self._closed = False
        self._tasks = Tasks("redis")
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def available(self) -> bool:
        """Whether any server is believed to answer."""
        if not self._lanes:
            return not self._scan_failed
        return any(lane.available for lane in self._lanes.values())

    @property
    def cluster(self) -> bool:
        """Whether the keys of one call must lie in one hash slot."""
        return self._servers.cluster

    def _in_loop(self) -> asyncio.AbstractEventLoop:
        """Asked for once: it costs a system call (Python 3.11)."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def call(self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]) -> asyncio.Future[Any]:
        """Run a script; the future's failures are `LedgerUnavailable`, or `LostAnswer` where it may have run."""
        command = ("EVALSHA", script.sha, str(len(keys)), *keys, *arguments)
        return self._submit(Call(self._in_loop(), script, command, keys[0], self._clock()))

    def call_replicated(
        self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]
    ) -> asyncio.Future[tuple[Any, bool]]:
        """As `call`; besides the answer, whether enough replicas have confirmed what was written. After a lost answer
        that can't be learnt: to WAIT on another connection, what this one wrote is unknown (since Redis 7.2)."""
        command = ("EVALSHA", script.sha, str(len(keys)), *keys, *arguments)
        return self._submit(Call(self._in_loop(), script, command, keys[0], self._clock(), replicated=True))

    def command(self, *command: str | int) -> asyncio.Future[Any]:
        """A plain command with its key in second place (XRANGE, HGET …); the reply as it comes, in bytes."""
        return self._submit(Call(self._in_loop(), None, command, str(command[1]), self._clock()))

    def _submit(self, call: Call) -> asyncio.Future[Any]:
        if self._closed:
            call.fail(LedgerUnavailable(_CLOSED))
        else:
            self._route(call)
        return call.future

    def _route(self, call: Call) -> None:
        server = self._servers.server_of(call.key) if self._scanned else None
        if server is not None:
            self._lane(server).submit(call)
        elif self._scanned or self._scan_failed:
            call.fail(LedgerUnavailable(_NO_MASTER if self._scanned else self._no_cluster))
            self._scan()
        elif len(self._unrouted) >= MAX_WAITING:
            call.fail(LedgerUnavailable(_BUSY))
        else:
            self._unrouted.append(call)
            self._scan()

    def _lane(self, server: str) -> Lane:
        lane = self._lanes.get(server)
        if lane is None:

            def away() -> None:
                self._suspect = server
                self._scan()

            lane = self._lanes[server] = Lane(
                server,
                lambda: self._servers.open(server),
                self._limit_seconds,
                self._clock,
                cluster=self._servers.cluster,
                replicas=self._replicas,
                refused=lambda call, error, meaning: self._again(server, call, error, meaning),
                failed=away,
            )
        return lane

    def _again(self, server: str, call: Call, error: ResponseError, meaning: Meaning) -> bool:
        """Ask a call once more that a server did not run; False where that is no use."""
        remedy = meaning.remedy
        if remedy in (Remedy.none, Remedy.away, Remedy.whole) or self._closed:
            return False
        if remedy is Remedy.reconnect and call.sends > 1:
            return False
        if remedy in (Remedy.follow, Remedy.rescan, Remedy.reconnect):
            self._scan()
        target: str | None = None
        if isinstance(error, AskError):
            target = f"{error.host or server.rpartition(':')[0]}:{error.port}"
        call.asking = remedy is Remedy.ask
        if remedy in (Remedy.pause, Remedy.rescan) or call.sends > AT_ONCE:
            self._tasks.start(self._later(call, target))
        elif target is not None:
            self._lane(target).submit(call)
        else:
            self._route(call)
        return True

    async def _later(self, call: Call, target: str | None) -> None:
        try:
            await asyncio.sleep(PAUSE_SECONDS)
            if target is not None:
                self._lane(target).submit(call)
            else:
                self._route(call)
        except asyncio.CancelledError:
            call.fail(LedgerUnavailable(_CLOSED))
            raise

    def _scan(self) -> None:
        """Learn a Cluster's map anew: once at a time, at most every `SCAN_PAUSE_SECONDS`, whoever asks for it."""
        if self._servers.cluster and self._scanning is None and not self._closed:
            self._scanning = self._tasks.start(self._learn())
            asyncio.get_running_loop().call_later(self._limit_seconds, self._give_up_unrouted)

    async def _learn(self) -> None:
        try:
            while True:
                await asyncio.sleep(max(0.0, self._scanned_at + SCAN_PAUSE_SECONDS - self._clock()))
                try:
                    async with asyncio.timeout(SCAN_SECONDS):
                        await self._servers.scan(self._suspect)
                except Exception as error:
                    # redis-py has errors of many kinds here, and none may end the search for a Cluster.
                    if not self._scan_failed:
                        log.warning("ledger_cluster_unknown", error=repr(error)[:300], cause=str(error)[:300])
                    self._scan_failed = True
                    self._no_cluster = reason_of(error, cluster=True) or _NO_CLUSTER
                else:
                    self._scanned, self._scan_failed = True, False
                self._scanned_at = self._clock()
                self._suspect = None
                if self._scanned:
                    break
                self._give_up_unrouted()
        finally:
            self._scanning = None
        await self._take_over_map()

    async def _take_over_map(self) -> None:
        unrouted, self._unrouted = self._unrouted, []
        for call in unrouted:
            self._route(call)
        masters = set(self._servers.masters())
        gone = [name for name, lane in self._lanes.items() if name not in masters and lane.idle]
        await asyncio.gather(*(self._lanes.pop(name).close() for name in gone))

    def _give_up_unrouted(self) -> None:
        """Nobody waits for the map any longer, until there is one."""
        self._scan_failed = not self._scanned
        unrouted, self._unrouted = self._unrouted, []
        for call in unrouted:
            call.fail(LedgerUnavailable(self._no_cluster))

    def one_a_server(self, keys: Iterable[str]) -> list[str]:
        """Of these keys, one for each server that has any; the first one where no server is known yet."""
        found: dict[str | None, str] = {}
        for key in keys:
            found.setdefault(self._servers.server_of(key) if self._scanned else None, key)
        return [key for server, key in found.items() if server is not None] or list(found.values())

    async def warnings(self, *, replicated: bool) -> list[str]:
        """What about any master would break the promise; to be said at start. What its user may not read is left out.
        Raises `LedgerUnavailable`."""
        if not self._scanned:
            self._scan()
            if self._scanning is not None:
                await asyncio.wait({self._scanning}, timeout=SCAN_SECONDS)
        masters = self._servers.masters()
        if not masters:
            raise LedgerUnavailable(self._no_cluster)
        found: list[str] = []
        problem: LedgerUnavailable | None = None
        for server in masters:
            try:
                info, save = await self._describe(server)
            except LedgerUnavailable as error:
                problem = error
            else:
                needed = self._replicas if replicated else None
                found += fitness.warnings(server, info, save, cluster=self._servers.cluster, replicas=needed)
        if problem is not None:
            raise problem
        return found

    async def _describe(self, server: str) -> tuple[str, str | None]:
        """INFO, and the setting `save`, as far as the user may have them."""
        lane = self._lane(server)
        calls = [
            Call(self._in_loop(), None, command, "", self._clock())
            for command in (("PING",), ("INFO",), ("CONFIG", "GET", "save"))
        ]
        for call in calls:
            lane.submit(call)
        ping, info, save = await asyncio.gather(*(call.future for call in calls), return_exceptions=True)
        if isinstance(ping, BaseException):
            raise ping
        described = "" if isinstance(info, BaseException) else info.decode(errors="replace")
        return described, save[1].decode() if isinstance(save, list) and len(save) == 2 else None

    async def close(self) -> None:
        """Answer what was asked already, for a second at most, and let go of Redis."""
        self._closed = True
        await self._tasks.cancel()
        self._give_up_unrouted()
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        await self._servers.close()


def connect(url: str, timeout_seconds: float, clock: Callable[[], float], *, replicas: int = 1) -> Connection:
    """To `ledger.url` (see `addresses.servers`), connected at the first call. `timeout_seconds`: see `lane`."""
    return Connection(addresses.servers(url, timeout_seconds), timeout_seconds, clock, replicas)
