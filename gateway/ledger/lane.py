"""One server's lane: the ledger's calls go out in pipelines on one connection, and a dead server costs nobody time.

Calls of a loop turn wait together and are sent as one pipeline; the next pipeline leaves when the answers are in. So
calls of one gateway reach a session in the order in which they were made, and the busier the gateway is, the fewer
round trips it pays for. One connection also means that ASKING and WAIT hold for the commands that they belong to.

Time: a pipeline that is not answered within the limit ends its connection, so no late answer can reach another call;
what waited behind it fails with it. A call therefore ends within the limit once it is sent, and within twice the limit
in all; while the server is away, within the limit; and while the breaker is open, at once.

The lane owns its connection (`wire`), without redis-py's client or pool on top: their pipelines give each answer a
time limit of its own, and the Cluster's swallow a dead server and send ASKING where it is lost. Between a call and its
answer there are only callbacks: the last answer of a pipeline sends the next one. Tasks connect and probe, no more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.errors import LedgerUnavailable
from gateway.ledger.breaker import PROBE_SECONDS, Breaker
from gateway.ledger.call import Call, packed
from gateway.ledger.exchange import Exchange, NotRun
from gateway.ledger.replies import LostAnswer, Meaning, Remedy, reason_of, refused
from gateway.ledger.wire import Wire
from gateway.tasks import Tasks

MAX_WAITING = 10_000
MAX_PIPELINE = 256

GRACE_SECONDS = 0.01
"""After a limit is over: where this process itself was held up, the answers are there already, and are read first."""


_SLOW = "Redis did not answer within ledger.timeout_seconds; see whether it is overloaded, stalled or far away."
_BEHIND = "Ledger steps wait for Redis longer than ledger.timeout_seconds; it is slower than they come."
_UNREACHABLE = "Redis at ledger.url can't be reached; see whether it runs, and the log for the cause."
_CLOSES = (
    "Redis at ledger.url closes each connection at once; see whether it wants TLS (rediss://), or a certificate of the"
    " gateway's (ssl_certfile)."
)
_NO_REPLICA = "Too few replicas of Redis confirm what is written: ledger.replicas says how many; see to them."
_CLOSED = "The gateway is being stopped, and asks Redis nothing any more."

log = structlog.get_logger(__name__)

_UNFIT = (Remedy.away, Remedy.reconnect)

Refused = Callable[[Call, ResponseError, Meaning], bool]
"""Told of a call that a server did not run; whether it will be asked elsewhere, or later."""


class Lane:
    """To be made in the running loop. `open_connection` makes a connection object without a time limit of its own, not
    yet connected, to whoever is the server now. `refused` is asked what becomes of a call that was not run; `failed` is
    told that the server could not be used. `clock`: monotonic seconds. `replicas`: how many have what is replicated."""

    def __init__(
        self,
        name: str,
        open_connection: Callable[[], Awaitable[AbstractConnection]],
        timeout_seconds: float,
        clock: Callable[[], float],
        *,
        cluster: bool,
        replicas: int,
        refused: Refused,
        failed: Callable[[], None],
    ) -> None:
        self.name = name
        self._open = open_connection
        self._limit_seconds = timeout_seconds
        self._wait = packed(("WAIT", replicas, max(1, int(timeout_seconds * 500))))
        self._needed = replicas
        self._clock = clock
        self._cluster = cluster
        self._refused = refused
        self._on_failure = failed
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._waiting: deque[Call] = deque()
        # From the first call that waits until none does any more: one pipeline, or one attempt to connect, at a time.
        self._busy = False
        self._idle_again: asyncio.Future[None] | None = None
        self._exchange: Exchange | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._doubted = False
        self._closed = False
        self._cause = ""
        self._breaker = Breaker()
        self._replication = Breaker()
        self._tasks = Tasks("ledger")

    @property
    def available(self) -> bool:
        return not self._breaker.is_open

    @property
    def idle(self) -> bool:
        return not self._busy

    def submit(self, call: Call) -> None:
        """Send it with the others of this loop turn, or fail it at once. Its failures are `LedgerUnavailable`."""
        if refusal := self._refusal(call):
            call.fail(LedgerUnavailable(refusal))
            return
        self._waiting.append(call)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._go_on)

    def _refusal(self, call: Call) -> str | None:
        if self._closed:
            return _CLOSED
        if self._breaker.is_open:
            return f"{self._cause} It is asked again in the background, and used as soon as it answers."
        if call.replicated and self._replication.is_open:
            return _NO_REPLICA
        if len(self._waiting) >= MAX_WAITING:
            return f"More than {MAX_WAITING} ledger steps wait for Redis; it is slower than the requests come."
        return None

    def _go_on(self) -> None:
        """The next pipeline, if anybody waits. A connection that the server has closed meanwhile, or that said what
        nobody asked for, is noticed before it is used."""
        while self._waiting:
            if self._wire is None or self._doubted or not self._wire.usable:
                self._tasks.start(self._reconnect())
                return
            if batch := self._next_batch():
                self._ask(self._wire, batch)
                return
        self._rest()

    def _rest(self) -> None:
        self._busy = False
        if self._idle_again is not None and not self._idle_again.done():
            self._idle_again.set_result(None)

    async def _reconnect(self) -> None:
        self._doubted = False
        self._drop()
        try:
            await self._connect()
        except BaseException:
            self._fail_waiting(_CLOSED)
            self._rest()
            raise
        self._go_on()

    async def _connect(self) -> bool:
        """A server that can't answer a PING (loading, busy, no rights, no password) counts as away."""
        connection: AbstractConnection | None = None
        met = False

        async def log_in(made: AbstractConnection) -> None:
            nonlocal met
            met = True
            await made.on_connect_check_health(check_health=False)

        try:
            async with _within(self._limit_seconds):
                connection = await self._open()
                connection.redis_connect_func = log_in  # type: ignore[assignment]
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command("PING", check_health=False)
                await connection.read_response()
                if await connection.can_read():
                    raise InvalidResponse("Redis says more than it was asked.")
                wire = Wire(connection, self._heard, self._broke)
        except Exception as error:
            await _end(connection)
            self._failed(error, closed=met)
            return False
        except BaseException:
            await _end(connection)
            raise
        if self._wire is None:
            self._wire = wire
        else:
            # A probe and a call have both connected: one is enough, and may be in use.
            wire.close()
        return True

    def _next_batch(self) -> list[Call]:
        batch: list[Call] = []
        oldest = self._clock() - self._limit_seconds
        while self._waiting and len(batch) < MAX_PIPELINE:
            call = self._waiting.popleft()
            if call.made_at < oldest:
                call.fail(call.refusal or LedgerUnavailable(_BEHIND))
            elif not call.future.done():
                batch.append(call)
        return batch

    def _ask(self, wire: Wire, batch: list[Call]) -> None:
        try:
            self._exchange = exchange = Exchange(batch, self._wait, cluster=self._cluster)
            self._limit = self._loop.call_later(self._limit_seconds, self._late)
            wire.ask(exchange.pipeline, len(exchange.asked))
        except Exception as problem:
            _fail(batch, _as_ours(problem, self._cluster))
            self._broke(problem)

    def _heard(self, answers: list[Any]) -> None:
        exchange = self._exchange
        assert exchange is not None
        try:
            complete = exchange.hear(answers)
        except Exception as problem:
            self._broke(problem)
        else:
            if complete:
                self._answered(exchange)

    def _late(self) -> None:
        """The limit is over; what has arrived is read before the pipeline is given up."""
        self._limit = self._loop.call_later(GRACE_SECONDS, self._broke, TimeoutError())

    def _answered(self, exchange: Exchange) -> None:
        self._over()
        if exchange.confirmed_by is not None:
            self._confirm(exchange)
        if not any(meaning.remedy in _UNFIT for _, _, meaning in exchange.not_run):
            self._breaker.succeeded()
        try:
            self._act(exchange.not_run)
        finally:
            self._go_on()

    def _broke(self, error: Exception) -> None:
        """Whatever went wrong, the connection can't be trusted any more, and nobody may be left waiting."""
        exchange = self._over()
        if exchange is not None:
            exchange.fail(_as_ours(error, self._cluster))
        self._failed(error)
        self._drop()
        try:
            self._act(exchange.not_run if exchange is not None else [])
        finally:
            self._go_on()

    def _over(self) -> Exchange | None:
        """Nothing is on its way any more; what was."""
        exchange, self._exchange = self._exchange, None
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        return exchange

    def _confirm(self, exchange: Exchange) -> None:
        if exchange.confirm(self._needed):
            self._replication.succeeded()
        elif self._replication.failed():
            log.warning("ledger_without_replica", server=self.name, said=str(exchange.confirmed_by)[:300])
            self._tasks.start(self._probe_replicas())

    def _act(self, again: NotRun) -> None:
        for remedy, error in {meaning.remedy: error for _, error, meaning in again}.items():
            if remedy in _UNFIT:
                self._unfit(error)
                if remedy is Remedy.away or self._breaker.is_open:
                    self._fail_waiting(self._cause)
                self._drop()
        whole: list[Call] = []
        for call, error, meaning in again:
            call.refusal = refused(error, meaning)
            young = call.made_at >= self._clock() - self._limit_seconds
            if meaning.remedy is Remedy.whole and not call.whole:
                call.whole = True
                call.sends -= 1
                whole.append(call)
            elif not (young and self._refused(call, error, meaning)):
                call.fail(call.refusal)
        self._waiting.extendleft(reversed(whole))

    def _failed(self, error: Exception, *, closed: bool = False) -> None:
        """The server could not be used: what was not sent yet fails too. `closed`: it let us in, and no further."""
        self._unfit(error)
        if closed and self._cause == _UNREACHABLE:
            self._cause = _CLOSES
        self._fail_waiting(self._cause)

    def _unfit(self, error: Exception) -> None:
        opened = self._breaker.failed()
        self._cause = _as_ours(error, self._cluster).detail
        self._on_failure()
        if opened and not self._closed:
            log.warning("ledger_away", server=self.name, error=repr(error)[:300], cause=str(error)[:300])
            self._tasks.start(self._probe())

    def _fail_waiting(self, detail: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        _fail(waiting, LedgerUnavailable(detail))

    async def _probe(self) -> None:
        """Nothing is sent while the breaker is open, so nobody else uses the connection."""
        while not self._closed:
            await asyncio.sleep(PROBE_SECONDS)
            if await self._connect():
                self._breaker.probed()
                log.info("ledger_back", server=self.name)
                return

    async def _probe_replicas(self) -> None:
        """Ask, in a pipeline of its own, whether enough replicas have what was written. On a new connection, to whoever
        is the master now: replicas that are missing here may follow another, and nobody tells this one."""
        while not self._closed:
            self._on_failure()
            await asyncio.sleep(PROBE_SECONDS)
            self._doubted = True
            call = Call(self._loop, None, ("WAIT", self._needed, 1), "", self._clock())
            self.submit(call)
            with suppress(LedgerUnavailable):
                if await call.future >= self._needed:
                    self._replication.probed()
                    log.info("ledger_replicated", server=self.name)
                    return

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    async def close(self) -> None:
        """Answer what was asked already, for a second at most, and let go of the server."""
        self._closed = True
        if self._busy:
            self._idle_again = self._loop.create_future()
            await asyncio.wait((self._idle_again,), timeout=1.0)
        await self._tasks.cancel()
        exchange = self._over()
        if exchange is not None:
            exchange.fail(LostAnswer(_CLOSED))
        self._fail_waiting(_CLOSED)
        self._drop()


def _as_ours(error: Exception, cluster: bool) -> LedgerUnavailable:
    if (reason := reason_of(error, cluster=cluster)) is not None:
        return LedgerUnavailable(reason)
    if isinstance(error, (RedisTimeoutError, TimeoutError)):
        return LedgerUnavailable(_SLOW)
    if isinstance(error, ResponseError):
        return refused(error, None)
    return LostAnswer(_UNREACHABLE)


def _fail(calls: list[Call] | deque[Call], error: LedgerUnavailable) -> None:
    for call in calls:
        call.fail(error)


async def _end(connection: AbstractConnection | None) -> None:
    if connection is not None:
        with suppress(RedisError, OSError):
            await connection.disconnect(nowait=True)


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout` that lets what has arrived be read before it gives up."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds, lambda: limit.reschedule(loop.time() + GRACE_SECONDS))
        try:
            yield
        finally:
            timer.cancel()
