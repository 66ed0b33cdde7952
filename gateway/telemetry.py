"""What the gateway tells its operators: metrics for Prometheus, and log lines as JSON.

Metrics: each gateway process has its own registry. Children are bound to their labels once and found in a
dict afterwards, so that a decision costs one look-up and one addition. Label values come from the
configuration, the policy and this code, never from clients, and there is a limit on them all the same: what
is beyond it is counted as `other`.

Logs: one event, one line, whatever its values hold. Text is cut at a limit, and what looks like a secret is
left out.

Knows nothing about what it counts.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from importlib import metadata
from typing import Any, Generic, Protocol, TextIO, TypeVar, get_args

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from gateway.config import Operation
from gateway.errors import ClientError, GatewayError, TooManyRequests
from gateway.policy.model import Surface

log = structlog.get_logger(__name__)

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds."""

OTHER = "other"
MAX_CHILDREN = 256
MAX_TEXT_CHARS = 512
MAX_TRACEBACK_CHARS = 8192
MAX_ELEMENTS = 64

_OPERATIONS = (*get_args(Operation), "pass", "view", "events")
_STEPS = (
    *("reserve", "commit", "release", "detach", "replace", "start", "end", "doubt", "settle"),
    *("snapshot", "claim", "adopt", "slots"),
)

M = TypeVar("M", bound=MetricWrapperBase)


class DirectoryCounts(Protocol):
    """The counters of one kind of record, read when Prometheus asks."""

    hits: int
    misses: int
    stale: int
    negative: int
    errors: int


class _Children(Generic[M]):
    """The children of one metric by their label values, each bound once."""

    def __init__(self, metric: M, labels: Sequence[str]) -> None:
        self._metric = metric
        self._bound: dict[tuple[str, ...], M] = {}
        self._other = (OTHER,) * len(labels)

    def of(self, *values: str) -> M:
        child = self._bound.get(values)
        return child if child is not None else self._bind(values)

    def _bind(self, values: tuple[str, ...]) -> M:
        if len(self._bound) >= MAX_CHILDREN:
            return self._metric.labels(*self._other)
        child = self._bound[values] = self._metric.labels(*values)
        return child


class Telemetry:
    """The metrics of one gateway process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.policy_version = ""
        self._directory: dict[str, DirectoryCounts] = {}

        def counter(name: str, about: str, *labels: str) -> _Children[Counter]:
            return _Children(Counter(f"attachgate_{name}", about, labels, registry=self.registry), labels)

        def seconds(name: str, about: str, *labels: str) -> _Children[Histogram]:
            histogram = Histogram(f"attachgate_{name}", about, labels, buckets=BUCKETS, registry=self.registry)
            return _Children(histogram, labels)

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(f"attachgate_{name}", about, labels, registry=self.registry)

        self._decisions = counter("decisions_total", "Requests decided by the policy", "surface", "rule", "verdict")
        self._refusals = counter("refusals_total", "Requests refused by the policy", "reason")
        self._request_seconds = seconds("request_seconds", "A request from its head to its answer", "operation")
        self._ledger_seconds = seconds("ledger_seconds", "One step of the ledger", "step")
        self._upstream_seconds = seconds("upstream_seconds", "The upstream's answer to a request", "operation")
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
        self._policy = gauge("policy_info", "The policy version in force", "version")
        gauge("build_info", "What runs here", "version", "python", "aiohttp").labels(
            _version("attachgate"), platform.python_version(), _version("aiohttp")
        ).set(1)
        self.registry.register(_DirectoryCollector(self._directory))
        prometheus_client.ProcessCollector(registry=self.registry)
        for operation in _OPERATIONS:
            self._request_seconds.of(operation)
            self._upstream_seconds.of(operation)
        for kind in ("attached", "detached"):
            self._drift.of(kind)
        for step in _STEPS:
            self._ledger_seconds.of(step)

    def decision(self, surface: Surface | None, rule: str, verdict: str) -> None:
        self._decisions.of(surface or "", rule, verdict).inc()

    def refused(self, surface: Surface | None, rule: str, reason: str) -> None:
        """Counts a refusal by the policy. It is not logged: a busy room makes thousands, and the decision journal has
        each with all that it was decided by."""
        self._decisions.of(surface or "", rule, "refused").inc()
        self._refusals.of(reason).inc()

    def failed(self, error: GatewayError, decision_id: str, session_id: str | None = None, client: str = "") -> None:
        """Counts and logs a request that the gateway answered with an error: the client's fault at `info`. What a limit
        refused is only counted: a flood must not become one of log lines, and the limit has its own."""
        self._errors.of(error.reason).inc()
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
        self._errors.of(reason).inc()

    def request_took(self, operation: str, seconds: float) -> None:
        self._request_seconds.of(operation).observe(seconds)

    def ledger_took(self, step: str, seconds: float) -> None:
        self._ledger_seconds.of(step).observe(seconds)

    def upstream_took(self, operation: str, seconds: float) -> None:
        self._upstream_seconds.of(operation).observe(seconds)

    def in_doubt(self, reservations: int) -> None:
        self._in_doubt.set(reservations)

    def settled(self, outcome: str) -> None:
        self._settled.of(outcome).inc()

    def adopted(self, products: int = 1) -> None:
        self._adopted.inc(products)

    def recovered(self, products: int) -> None:
        self._recovered.inc(products)

    def journal_dropped(self, decisions: int = 1) -> None:
        self._journal_dropped.inc(decisions)

    def drifted(self, kind: str, products: int) -> None:
        """`attached` or `detached` past the gateway: somebody goes another way, which is worth an alert."""
        self._drift.of(kind).inc(products)

    def swept(self) -> None:
        self._swept.inc()

    def watch_connections(self, count: Callable[[], int]) -> None:
        """`count` is called at each scrape."""
        self._connections.set_function(count)

    def watch_directory(self, counts: Mapping[str, DirectoryCounts]) -> None:
        """By kind of record (`account`, `product`, `session`); read at each scrape."""
        self._directory.update(counts)

    def policy(self, version: str) -> None:
        """The version that is in force from now on."""
        if version != self.policy_version:
            self.policy_version = version
            self._policy.clear()
            self._policy.labels(version).set(1)

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


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


Event = MutableMapping[str, Any]

_SECRET_KEY = re.compile(r"authorization|cookie|token|passw|secret|credential|jwt|api_?key", re.IGNORECASE)
_SECRETS = (
    (re.compile(r"(?<=://)[^/@\s]{1,256}@"), "[hidden]@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 [hidden]"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), "[hidden]"),
)


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Log lines as JSON objects on standard error, one event a line: `timestamp` (UTC), `level`, `event`, and
    what belongs to it. What libraries log through `logging` comes in the same form. Raises ValueError for an
    unknown level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is no log level: use debug, info, warning or error.")
    out = stream if stream is not None else sys.stderr
    steps: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _bounded,
    ]
    structlog.configure(
        processors=[*steps, _as_json],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*steps[:-1], structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _bounded, _as_json],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)


def _as_json(logger: Any, method: str, event: Event) -> str:
    """Everything outside ASCII is escaped too, since some viewers end a line at U+0085 or U+2028; and DEL, which JSON
    allows."""
    return json.dumps(event, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")


def _bounded(logger: Any, method: str, event: Event) -> Event:
    """No secrets, and no text longer than a reader needs. Of a traceback its end is kept, where the error
    stands."""
    for key, value in event.items():
        if _SECRET_KEY.search(key):
            event[key] = "[hidden]"
        elif key in ("exception", "stack"):
            event[key] = without_secrets(str(value)[-MAX_TRACEBACK_CHARS:])
        elif value is not None and type(value) not in (int, float, bool):
            event[key] = _short(value)
    return event


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key)[:MAX_TEXT_CHARS]: "[hidden]" if _SECRET_KEY.search(str(key)) else _text(item)
            for key, item in list(value.items())[:MAX_ELEMENTS]
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_text(item) for item in list(value)[:MAX_ELEMENTS]]
    return _text(value)


def _text(value: Any) -> Any:
    if value is None or type(value) in (int, float, bool):
        return value
    text = without_secrets((value if isinstance(value, str) else str(value))[: 2 * MAX_TEXT_CHARS])
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 3] + "..."


def without_secrets(text: str) -> str:
    """The text without credentials in URLs, Authorization values and tokens."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
