"""What one gateway process counts and times, and how Prometheus reads it.

What a request touches is plain numbers (`counts`), handed over when they are asked for; the rest are
prometheus-client's own metrics. Label values come from the configuration, the policy and this code, never from
clients, and there is a limit on them all the same. Knows nothing about what it counts.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Protocol, get_args

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway.config import Operation
from gateway.errors import ClientError, GatewayError, TooManyRequests
from gateway.policy.model import Surface
from gateway.telemetry.counts import Counts, Durations

log = structlog.get_logger(__name__)

_OPERATIONS = (*get_args(Operation), "pass", "view", "events")
_STEPS = (
    *("reserve", "commit", "release", "detach", "replace", "start", "end", "doubt", "settle"),
    *("snapshot", "claim", "adopt", "slots"),
)


class DirectoryCounts(Protocol):
    """The counters of one kind of record, read when Prometheus asks."""

    hits: int
    misses: int
    stale: int
    negative: int
    errors: int


class Telemetry:
    """The metrics of one gateway process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._policy_in_force: Callable[[], str] = str
        self._directory: dict[str, DirectoryCounts] = {}

        def counter(name: str, about: str, *labels: str) -> Counts:
            counts = Counts(f"attachgate_{name}", about, *labels)
            self.registry.register(counts)
            return counts

        def seconds(name: str, about: str, label: str, known: Iterable[str]) -> Durations:
            durations = Durations(f"attachgate_{name}", about, label, known)
            self.registry.register(durations)
            return durations

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(f"attachgate_{name}", about, labels, registry=self.registry)

        self._decisions = counter("decisions_total", "Requests decided by the policy", "surface", "rule", "verdict")
        self._refusals = counter("refusals_total", "Requests refused by the policy", "reason")
        self._request_seconds = seconds(
            "request_seconds", "A request from its head to its answer", "operation", _OPERATIONS
        )
        self._ledger_seconds = seconds("ledger_seconds", "One step of the ledger", "step", _STEPS)
        self._upstream_seconds = seconds(
            "upstream_seconds", "The upstream's answer to a request", "operation", _OPERATIONS
        )
        self._settled = counter("settled_total", "Outcomes of settlements by the reconciler", "outcome")
        self._errors = counter("errors_total", "Requests that the gateway answered with an error", "reason")
        self._adopted = Counter(
            "attachgate_adopted_total", "Products found upstream that the ledger did not know", registry=self.registry
        )
        self._recovered = Counter(
            "attachgate_recovered_total",
            "Products of sessions that the ledger lost, removed while live, that the journal knew",
            registry=self.registry,
        )
        self._journal_dropped = Counter(
            "attachgate_journal_dropped_total", "Decisions that the journal has not got", registry=self.registry
        )
        self._drift = counter("drift_total", "Products that the sweep found to have gone past the gateway", "kind")
        self._swept = Counter(
            "attachgate_swept_total",
            "Sessions that the sweep has compared with the upstream's list",
            registry=self.registry,
        )
        self._in_doubt = gauge("in_doubt", "Reservations whose outcome is unknown")
        self._connections = gauge("connections", "Open client connections")
        gauge("build_info", "What runs here", "version", "python", "aiohttp").labels(
            _version("attachgate"), platform.python_version(), _version("aiohttp")
        ).set(1)
        self.registry.register(_DirectoryCollector(self._directory))
        self.registry.register(_PolicyCollector(lambda: self.policy_version))
        prometheus_client.ProcessCollector(registry=self.registry)
        for kind in ("attached", "detached"):
            self._drift.add((kind,), 0)

    def decision(self, surface: Surface | None, rule: str, verdict: str) -> None:
        self._decisions.add((surface or "", rule, verdict))

    def refused(self, surface: Surface | None, rule: str, reason: str) -> None:
        """Counts a refusal by the policy. It is not logged: a busy room makes thousands, and the decision journal has
        each with all that it was decided by."""
        self._decisions.add((surface or "", rule, "refused"))
        self._refusals.add((reason,))

    def failed(self, error: GatewayError, decision_id: str, session_id: str | None = None, client: str = "") -> None:
        """Counts and logs a request that the gateway answered with an error: the client's fault at `info`. What a limit
        refused is only counted: a flood must not become one of log lines, and the limit has its own."""
        self._errors.add((error.reason,))
        if isinstance(error, TooManyRequests):
            return
        level = logging.INFO if isinstance(error, ClientError) else logging.WARNING
        log.log(
            level,
            "failed",
            decision_id=decision_id,
            reason=error.reason,
            status=error.status,
            session_id=session_id,
            client=client,
            detail=error.detail,
        )

    def error(self, reason: str) -> None:
        """Counts what went wrong without an answer of the gateway's own, such as an exchange that was cut."""
        self._errors.add((reason,))

    def request_took(self, operation: str, seconds: float) -> None:
        self._request_seconds.observe(operation, seconds)

    def ledger_took(self, step: str, seconds: float) -> None:
        self._ledger_seconds.observe(step, seconds)

    def upstream_took(self, operation: str, seconds: float) -> None:
        self._upstream_seconds.observe(operation, seconds)

    def in_doubt(self, reservations: int) -> None:
        self._in_doubt.set(reservations)

    def settled(self, outcome: str) -> None:
        self._settled.add((outcome,))

    def adopted(self, products: int = 1) -> None:
        self._adopted.inc(products)

    def recovered(self, products: int) -> None:
        self._recovered.inc(products)

    def journal_dropped(self, decisions: int = 1) -> None:
        self._journal_dropped.inc(decisions)

    def drifted(self, kind: str, products: int) -> None:
        """`attached` or `detached` past the gateway: somebody goes another way, which is worth an alert."""
        self._drift.add((kind,), products)

    def swept(self) -> None:
        self._swept.inc()

    def watch_connections(self, count: Callable[[], int]) -> None:
        """`count` is called at each scrape."""
        self._connections.set_function(count)

    def watch_directory(self, counts: Mapping[str, DirectoryCounts]) -> None:
        """By kind of record (`account`, `product`, `session`); read at each scrape."""
        self._directory.update(counts)

    def watch_policy(self, in_force: Callable[[], str]) -> None:
        """`in_force` names the policy version. It is asked at each scrape, since a version begins when its time comes,
        without a reload."""
        self._policy_in_force = in_force

    @property
    def policy_version(self) -> str:
        return self._policy_in_force()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics, and the content type of the form that `accept` (an Accept header) asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _DirectoryCollector(Collector):
    _RESULTS = ("hits", "misses", "stale", "negative", "errors")

    def __init__(self, counts: Mapping[str, DirectoryCounts]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "attachgate_directory", "Look-ups in the directory's cache", labels=("kind", "result")
        )
        for kind, counts in self._counts.items():
            for result in self._RESULTS:
                family.add_metric((kind, result), getattr(counts, result))
        yield family


class _PolicyCollector(Collector):
    def __init__(self, in_force: Callable[[], str]) -> None:
        self._in_force = in_force

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("attachgate_policy_info", "The policy version in force", labels=("version",))
        family.add_metric((self._in_force(),), 1.0)
        yield family


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"
