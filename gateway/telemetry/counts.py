"""Numbers that every request touches: plain integers and floats, handed to Prometheus when it asks.

prometheus-client's own counters and histograms take a lock for each number they change, which costs a request more
than the rest of its bookkeeping; a gateway process counts on one thread and needs none. What Prometheus reads is what
those would show: names, labels, buckets, and when each series was created.

Label values are bounded: of each metric there are `MAX_CHILDREN` series, and what is beyond them is counted as `other`.
Not safe for threads: counted and collected on the event loop's.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds in seconds; what is above the last is counted in one more."""

OTHER = "other"
MAX_CHILDREN = 256

_BOUNDS = (*map(floatToGoString, BUCKETS), "+Inf")
_SHOWS_CREATED = os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "").lower() not in ("true", "1", "t")
"""As prometheus-client has it for its own metrics."""


S = TypeVar("S")


class _Count:
    __slots__ = ("created_at", "value")

    def __init__(self) -> None:
        self.created_at = time.time()
        self.value = 0


class _Histogram:
    """`counts`: of each bucket by itself, where Prometheus reads how many were at most so long."""

    __slots__ = ("counts", "created_at", "sum_seconds")

    def __init__(self) -> None:
        self.created_at = time.time()
        self.counts = [0] * len(_BOUNDS)
        self.sum_seconds = 0.0


class _Bounded(dict[tuple[str, ...], S], Generic[S]):
    """The series of one metric by their label values; one that is not there yet is made, or `other` stands for it."""

    def __init__(self, make: Callable[[], S]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, values: tuple[str, ...]) -> S:
        if len(self) >= MAX_CHILDREN:
            values = (OTHER,) * len(values)
        series = self.get(values)
        if series is None:
            series = self[values] = self._make()
        return series


class Counts(Collector):
    """A counter with labels; its name ends with `_total`."""

    def __init__(self, name: str, about: str, *labels: str) -> None:
        self._name, self._about, self._labels = name, about, labels
        self._series = _Bounded(_Count)

    def add(self, values: tuple[str, ...], count: int = 1) -> None:
        """`count` is not negative; with 0 the series is there before anything happened."""
        self._series[values].value += count

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._about, labels=self._labels)
        for values, series in self._series.items():
            family.add_metric(values, series.value, series.created_at if _SHOWS_CREATED else None)
        yield family


class Durations(Collector):
    """A histogram of seconds by one label, whose `known` values are there before anything happened."""

    def __init__(self, name: str, about: str, label: str, known: Iterable[str]) -> None:
        self._name, self._about, self._label = name, about, label
        self._series = _Bounded(_Histogram)
        for value in known:
            self._series[value,]

    def observe(self, value: str, seconds: float) -> None:
        series = self._series[value,]
        series.counts[bisect_left(BUCKETS, seconds)] += 1
        series.sum_seconds += seconds

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._about, labels=(self._label,))
        for values, series in self._series.items():
            buckets = [*zip(_BOUNDS, accumulate(series.counts), strict=True)]
            family.add_metric(values, buckets, series.sum_seconds)
            if _SHOWS_CREATED:
                family.add_sample(f"{family.name}_created", {self._label: values[0]}, series.created_at)
        yield family
