"""One gateway process: builds the parts, listens, reloads, drains.

A reload builds the new rules beside the old ones and swaps them in one assignment, so a request sees one or the other.
What can't change while sockets are open (addresses, the ledger, the upstream's pool) takes effect at the next start,
and the log says so.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog
from aiohttp import web

from gateway import identity, settings, tls
from gateway.admin import server as admin
from gateway.admission.gate import Gate
from gateway.admission.notes import Notes
from gateway.admission.settle import Settlements
from gateway.config import ClientTls, Config
from gateway.config import Ledger as LedgerConfig
from gateway.directory import Directory
from gateway.errors import ConfigurationError, GatewayError
from gateway.ledger import embedded
from gateway.ledger.connection import Connection, connect
from gateway.ledger.full import FullSessions
from gateway.ledger.journal import Journal
from gateway.ledger.sessions import Sessions
from gateway.ledger.steps import Ledger
from gateway.ledger.streams import Streams
from gateway.policy.evaluate import Verdicts
from gateway.policy.model import Policy, Product
from gateway.proxy.dispatch import Dispatcher
from gateway.proxy.fast import FastLane
from gateway.proxy.forward import client_session
from gateway.proxy.limits import LimitedIdentity, Limiter
from gateway.proxy.listener import Listener
from gateway.proxy.live import LiveView
from gateway.proxy.rules import Rules, account_areas
from gateway.reading.body import BodyReader
from gateway.reading.headers import HeaderReader
from gateway.reading.routes import Matcher, route_name
from gateway.reading.spelling import id_check
from gateway.reconciler.doubt import Reconciler
from gateway.reconciler.drift import Drift
from gateway.reconciler.opening import Opening
from gateway.reconciler.recall import Recall
from gateway.reconciler.takeover import Takeovers
from gateway.site import Site
from gateway.tasks import Tasks
from gateway.telemetry import Telemetry
from gateway.upstream.listing import list_products, lists
from gateway.upstream.pool import Pool

SETTLE_LIMIT_SECONDS = 5.0
COLLECT_AFTER_OBJECTS = 5_000
CANCELLED_LIMIT_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Gateway:
    """A running gateway. `port` and `admin_port` are the ports that it got."""

    def __init__(self, config: Config, policy: Policy, connection: Connection) -> None:
        self.config = config
        self.telemetry = Telemetry()
        self._login = client_session(msgspec.structs.replace(config.upstream, tls=ClientTls()))
        self._connection = connection
        self.ledger = Ledger(connection, config.ledger, config.upstream.late_apply_seconds)
        self._directory = Directory(config.directory, config.upstream, time.monotonic)
        self._pool = Pool(config.upstream, time.monotonic, map(route_name, config.routes))
        self._journal = Journal(self.ledger)
        self._recall = Recall(config.journal, config.ledger.retention_seconds) if config.journal.files else None
        self._opening = opening = Opening(self.ledger, self._directory, self._list, self.telemetry, self._recall)
        self._takeovers = Takeovers(self.ledger, opening)
        self._reconciler = Reconciler(
            self.ledger, self._directory, self._list, self.telemetry, lease_seconds=lease_seconds(config)
        )
        self._drift = self._sweeping(config.ledger)
        hold_seconds = config.ledger.hold_seconds
        self._settlements = Settlements(self.ledger, opening, self._reconciler, self._takeovers, hold_seconds)
        self._notes = Notes(Streams(connection, config.ledger), self.telemetry)
        self._limiter = Limiter(config.limits, time.monotonic)
        self._identity = LimitedIdentity(
            identity.build(config.identity, config.limits.id_pattern, self._login), self._limiter
        )
        self._gate = Gate(
            verdicts=Verdicts(policy),
            bodies=BodyReader(config.routes, config.limits),
            identity=self._identity,
            directory=self._directory,
            ledger=self.ledger,
            full=FullSessions(time.monotonic, config.directory.ttl_seconds),
            opening=opening,
            reconciler=self._reconciler,
            takeovers=self._takeovers,
            settlements=self._settlements,
            notes=self._notes,
            pool=self._pool,
            telemetry=self.telemetry,
            wall_clock=time.time,
            send_within_seconds=hold_seconds - config.upstream.response_timeout_seconds,
            is_id=id_check(config.limits.id_pattern),
        )
        self._lists = lists(config.upstream, time.monotonic)
        self._streams = client_session(config.upstream, max_connections=config.listen.max_connections)
        live = LiveView(self._gate, self._journal, config.limits.id_pattern)
        self._dispatcher = Dispatcher(self._rules(config), self._gate, self._streams, live, self._limiter)
        self._loops = Tasks("loops")
        self.telemetry.watch_directory(
            {
                "account": self._directory.account_records,
                "product": self._directory.product_records,
                "session": self._directory.session_records,
            }
        )
        self.telemetry.watch_policy(lambda: policy_in_force(self._gate.verdicts.policy, time.time()))
        self._embedded: embedded.EmbeddedRedis | None = None
        self._drained = False

    @classmethod
    async def start(cls, config: Config, policy: Policy, *, worker: Path | None = None) -> Gateway:
        """Build and listen. As a worker it shares its port with others, and has its admin routes on that unix socket.
        Raises `OSError` where an address can't be had."""
        redis = await embedded.start() if config.ledger.url == "embedded" else None
        url = redis.url if redis is not None else config.ledger.url
        gateway = cls(
            config,
            policy,
            connect(url, config.ledger.timeout_seconds, time.monotonic, replicas=config.ledger.replicas),
        )
        gateway._embedded = redis
        try:
            await gateway._listen(worker)
        except BaseException:
            await gateway.close()
            raise
        return gateway

    async def _listen(self, worker: Path | None) -> None:
        listen = self.config.listen
        await self._identity.start()
        dispatcher = self._dispatcher
        self._listener = Listener(
            dispatcher.handle,
            FastLane(lambda: dispatcher.rules, dispatcher.attach, time.time),
            listen,
            self.config.limits.peer_connections,
            refused=lambda error: self.telemetry.error(error.reason),
            closing=lambda: dispatcher.draining,
        )
        self._runner = web.ServerRunner(self._listener, shutdown_timeout=listen.drain_seconds)
        await self._runner.setup()
        self.telemetry.watch_connections(lambda: len(self._listener.connections))
        shared = worker is not None
        self._tls = tls.server(listen.tls)
        self._site = Site(
            self._runner,
            listen.host,
            listen.port,
            tls=self._tls,
            handshake_seconds=listen.header_timeout_seconds,
            shared=shared,
        )
        await self._site.start()
        self.port = int(self._runner.addresses[0][1])
        checks = {"ledger": self.ledger.ping, "upstream": self._ask_upstream}
        self._admin = await admin.start(listen, self.telemetry, checks, lambda: dispatcher.draining, socket=worker)
        self.admin_port = self._admin.port
        self._loops.start(self._reconciler.run())
        self._loops.start(self._takeovers.run())
        self._loops.start(self._notes.run())
        if self._drift is not None:
            self._loops.start(self._drift.run())
        self._loops.start(self._warn())
        log.info("listening", url=self.url, admin_port=self.admin_port)

    @property
    def url(self) -> str:
        return _url(self._tls is not None, self.config.listen.host, self.port)

    @property
    def admin_url(self) -> str:
        listen = self.config.listen
        return _url(bool(listen.admin_tls.certificate), listen.admin_host, self.admin_port)

    def _rules(self, config: Config) -> Rules:
        return Rules(
            config=config,
            matcher=Matcher(config.routes, config.limits),
            account_areas=account_areas(config.routes),
            headers=HeaderReader(
                self._identity.own_header.decode(),
                max_headers=config.listen.max_headers,
                max_header_bytes=config.listen.max_header_bytes,
                behind_proxies=config.listen.forwarded_hops > 0,
            ),
        )

    def _sweeping(self, config: LedgerConfig) -> Drift | None:
        if config.sweep_sessions_per_second == 0:
            return None
        return Drift(
            self.ledger,
            Sessions(self._connection, config.prefix),
            self._directory,
            self._list,
            self._opening,
            self.telemetry,
            config.sweep_sessions_per_second,
        )

    async def _list(self, session_id: str) -> tuple[Product, ...]:
        return await list_products(self._lists, self.config, session_id)

    async def _ask_upstream(self) -> None:
        await self._pool.probe()

    async def _warn(self) -> None:
        """What about Redis or the journal would break the promise, said once at start."""
        if self._recall is not None:
            await self._recall.check()
        try:
            for warning in await self.ledger.warnings():
                log.warning("ledger_setting", warning=warning)
        except GatewayError as error:
            log.warning("ledger_unavailable", error=error.detail)

    def reload(self, config: Config, policy: Policy) -> None:
        """Take over a new policy, new rules for reading requests and new certificates; what needs a new start is named
        in the log. Raises `tls.Unusable`, and then all stays as it is."""
        fixed = needs_restart(self.config, config)
        if fixed:
            log.warning("reload_needs_restart", keys=fixed)
        if self._tls is not None:
            self._tls.reload(config.listen.tls)
        self._admin.reload(config.listen)
        self._gate.verdicts = Verdicts(policy)
        self._gate.bodies = BodyReader(config.routes, config.limits)
        self._dispatcher.rules = self._rules(config)
        self._limiter.configure(config.limits)
        self._loops.start(self._identity.reload())
        log.info("reloaded", policy_version=policy.versions[-1].id)

    async def drain(self) -> None:
        """No new connections; running requests and their settlements end, within `listen.drain_seconds`."""
        if self._drained:
            return
        self._drained = True
        self._dispatcher.drain()
        for _ in range(2):
            await asyncio.sleep(0)  # Who has connected already is accepted, not reset.
        await self._site.stop()
        await self._listener.drain(self.config.listen.drain_seconds)
        await self._runner.cleanup()
        await self._dispatcher.ended(CANCELLED_LIMIT_SECONDS)
        left = await self._settlements.tasks.drain(SETTLE_LIMIT_SECONDS)
        if left:
            log.warning("settlements_left_to_reconciler", count=left)

    async def close(self) -> None:
        """Drain and let go of everything."""
        if hasattr(self, "_runner"):
            await self.drain()
        if hasattr(self, "_admin"):
            await self._admin.close()
        await self._loops.cancel()
        await self._settlements.tasks.cancel()
        await self._reconciler.close()
        await self._opening.close()
        if self._recall is not None:
            await self._recall.close()
        await self._journal.close()
        await self._notes.close()
        await self._directory.close()
        await self._identity.close()
        self._pool.close()
        await self._connection.close()
        await self._login.close()
        await self._streams.close()
        self._lists.close()
        if self._embedded is not None:
            await self._embedded.close()


def _url(with_tls: bool, host: str, port: int) -> str:
    return f"{'https' if with_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def needs_restart(before: Config, after: Config) -> list[str]:
    """The sections and keys whose change a reload does not take over: sockets are open by them, or parts are built."""
    changed = [
        name
        for name in ("upstream", "ledger", "directory", "identity", "journal")
        if getattr(before, name) != getattr(after, name)
    ]
    keys = (
        "host",
        "port",
        "admin_host",
        "admin_port",
        "max_connections",
        "header_timeout_seconds",
        "keepalive_seconds",
    )
    changed += [f"listen.{key}" for key in keys if getattr(before.listen, key) != getattr(after.listen, key)]
    for name in ("tls", "admin_tls"):
        if not tls.same_kind(getattr(before.listen, name), getattr(after.listen, name)):
            changed.append(f"listen.{name}")
    if before.listen.admin_token and not after.listen.admin_token:
        changed.append("listen.admin_token")
    if before.limits.id_pattern != after.limits.id_pattern:
        changed.append("limits.id_pattern")
    return changed


def _stop_with_supervisor(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Nothing is ever written to this input: it only ends, with the process at its other end."""

    def ended() -> None:
        loop.remove_reader(sys.stdin.fileno())
        stop.set()

    loop.add_reader(sys.stdin.fileno(), ended)


def lease_seconds(config: Config) -> float:
    """How long one settlement of the reconciler may take: the list, the session, and three steps of the ledger."""
    steps = 3 * 2 * config.ledger.timeout_seconds
    return config.upstream.response_timeout_seconds + config.directory.timeout_seconds + steps + 1.0


def policy_in_force(policy: Policy, now: float) -> str:
    """The version that the clock has reached; the first one where none has begun."""
    begun = [version.id for version in policy.versions if version.effective_from <= now]
    return begun[-1] if begun else policy.versions[0].id


def _calm_collector() -> None:
    """What stands now stands until the end, and need not be looked through again: a full collection of it holds up
    every request for 30 to 100 ms. What a request leaves behind has no cycles, but for what fails."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, 20, 20)


async def run(path: Path, environ: Mapping[str, str], *, worker: Path | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or, as a worker, until the supervisor's end of standard input is gone; SIGHUP
    reloads. Raises `ConfigurationError` where the files are wrong."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # It would end a process that is still starting.
    early: list[int] = []
    loop.add_signal_handler(signal.SIGHUP, early.append, signal.SIGHUP)
    # A supervisor has blocked them until here.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    if worker is not None:
        _stop_with_supervisor(loop, stop)
    config, policy = settings.load_all(path, environ)
    try:
        gateway = await Gateway.start(config, policy, worker=worker)
    except OSError as error:
        listen = config.listen
        log.error("cannot_listen", host=listen.host, port=listen.port, admin_port=listen.admin_port, error=str(error))
        return 1

    def reload() -> None:
        try:
            gateway.reload(*settings.load_all(path, environ))
        except ConfigurationError as error:
            log.error("reload_refused", mistakes=[str(mistake) for mistake in error.mistakes])
        except Exception:
            log.exception("reload_failed")

    loop.add_signal_handler(signal.SIGHUP, reload)
    if early:
        reload()
    _calm_collector()
    await stop.wait()
    log.info("draining", limit_seconds=config.listen.drain_seconds)
    await gateway.close()
    log.info("stopped")
    return 0
