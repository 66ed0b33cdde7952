"""What a run measured: answers counted by operation, status and reason, latencies in HDR histograms, one row a
second.

Latencies go from when a request should have started to its answer, or to when waiting for one ended: a
request without an answer counts with its whole wait. Histograms keep three significant digits from 1 µs to
20 minutes; what lies above counts as 20 minutes.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any, Final

from msgspec import Struct

from gateway.load.options import Operation

with warnings.catch_warnings():
    # Its ctypes structures are packed in a way that Python 3.14 wants to be said more explicitly.
    warnings.simplefilter("ignore", DeprecationWarning)
    from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

LONGEST_US: Final = 1_200_000_000
DIGITS: Final = 3
CURVE: Final = tuple(100 * (1 - 10 ** (-step / 8)) for step in range(41))
"""Percentiles of a curve: eight for each further nine, up to 99.999."""


class Summary(Struct, frozen=True):
    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Second(Struct, frozen=True):
    """About a second of the run, ending `at_seconds` after its beginning. `asked`: requests of the schedule
    that were due, `started`: these and retries; `refused` is 4xx, `failed` 5xx or no answer."""

    at_seconds: float
    lasted_seconds: float
    asked: int
    started: int
    ok: int
    refused: int
    failed: int
    in_flight: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Answers(Struct, frozen=True):
    """How often an operation was answered in one way. `status` 0: not at all, `reason` says why."""

    operation: Operation
    status: int
    reason: str
    count: int


def whole_us(seconds: float) -> int:
    return min(LONGEST_US, max(1, round(seconds * 1e6)))


class Latencies:
    def __init__(self) -> None:
        self._histogram: Any = HdrHistogram(1, LONGEST_US, DIGITS)
        self._put = self._histogram.record_value
        self._total_us = 0

    def record(self, latency_us: int) -> None:
        self._total_us += latency_us
        self._put(latency_us)

    @property
    def count(self) -> int:
        return int(self._histogram.get_total_count())

    def percentiles_ms(self, percentiles: tuple[float, ...]) -> list[float]:
        """In the order asked; zeros where nothing was recorded."""
        if not self.count:
            return [0.0] * len(percentiles)
        found = self._histogram.get_percentile_to_value_dict(list(percentiles))
        top = self._histogram.get_max_value()
        return [min(found[percentile], top) / 1000 for percentile in percentiles]

    def summary(self) -> Summary:
        p50, p90, p99, p999 = self.percentiles_ms((50.0, 90.0, 99.0, 99.9))
        mean_ms = self._total_us / self.count / 1000 if self.count else 0.0
        return Summary(self.count, round(mean_ms, 3), p50, p90, p99, p999, self.max_ms)

    @property
    def max_ms(self) -> float:
        return float(self._histogram.get_max_value()) / 1000 if self.count else 0.0

    def curve(self) -> list[tuple[float, float]]:
        """(percentile, ms), as far as the number of records says anything."""
        most = 100 * (1 - 1 / max(2, self.count))
        shown = tuple(percentile for percentile in CURVE if percentile <= most)
        return list(zip(shown, self.percentiles_ms(shown), strict=True))


class Measures:
    def __init__(self) -> None:
        self.all = Latencies()
        self.by_operation: dict[Operation, Latencies] = {}
        self.lateness = Latencies()
        """How much later than due the harness itself started requests; it is part of each latency."""
        self.seconds: list[Second] = []
        self.asked = 0
        self.retries = 0
        self.unfinished = 0
        self.queued = 0
        """Requests that found every connection busy, or none open yet; also a part of the latencies."""
        self.longest_wait_ms = 0.0
        self.requests = 0
        self.failed = 0
        self._answers: Counter[tuple[Operation, int, str]] = Counter()
        self._begin_second()

    def _begin_second(self) -> None:
        self._second = Latencies()
        self._ok = self._refused = self._failed = 0
        self._asked_before, self._requests_before = self.asked, self.requests

    def started(self, late_seconds: float, *, retry: bool) -> None:
        self.requests += 1
        if retry:
            self.retries += 1
        else:
            self.asked += 1
        self.lateness.record(whole_us(late_seconds))

    def answered(self, operation: Operation, status: int, reason: str, latency_seconds: float) -> None:
        self._answers[operation, status, reason] += 1
        latency_us = whole_us(latency_seconds)
        if (latencies := self.by_operation.get(operation)) is None:
            latencies = self.by_operation[operation] = Latencies()
        latencies.record(latency_us)
        self._second.record(latency_us)
        if status == 0 or status >= 500:
            self._failed += 1
            self.failed += 1
        elif status >= 400:
            self._refused += 1
        else:
            self._ok += 1
        self.all.record(latency_us)

    def close_second(self, at_seconds: float, in_flight: int) -> Second:
        p50, p99, p999 = self._second.percentiles_ms((50.0, 99.0, 99.9))
        second = Second(
            at_seconds=round(at_seconds, 3),
            lasted_seconds=round(at_seconds - (self.seconds[-1].at_seconds if self.seconds else 0.0), 3),
            asked=self.asked - self._asked_before,
            started=self.requests - self._requests_before,
            ok=self._ok,
            refused=self._refused,
            failed=self._failed,
            in_flight=in_flight,
            p50_ms=p50,
            p99_ms=p99,
            p999_ms=p999,
            max_ms=self._second.max_ms,
        )
        self.seconds.append(second)
        self._begin_second()
        return second

    @property
    def error_rate(self) -> float:
        """The share of answered requests that had no answer or a 5xx."""
        return self.failed / self.all.count if self.all.count else 0.0

    def answers(self) -> list[Answers]:
        """By operation, the most frequent answer first."""
        order = list(Operation)
        rows = [Answers(*key, count) for key, count in self._answers.items()]
        return sorted(rows, key=lambda row: (order.index(row.operation), -row.count, row.status, row.reason))
