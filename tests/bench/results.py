"""What was measured, and its medians. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from msgspec import Struct


class Metric(Struct, frozen=True):
    """How a figure is called and written; `better` is "more" or "less", or empty for what only explains."""

    name: str
    unit: str
    digits: int
    better: str = ""


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric("requests/s", "", 0, "more"),
        Metric("CPU", "µs/req", 1, "less"),
        Metric("core busy", "%", 0),
        Metric("Redis", "µs/req", 1),
        Metric("upstream", "µs/req", 1),
        Metric("p50", "ms", 2, "less"),
        Metric("p99", "ms", 2, "less"),
        Metric("p99.9", "ms", 2, "less"),
        Metric("max", "ms", 1),
        Metric("failed", "", 0),
        Metric("down", "MiB/s", 0, "more"),
        Metric("down grows", "MiB", 1, "less"),
        Metric("up", "MiB/s", 0, "more"),
        Metric("up grows", "MiB", 1, "less"),
        Metric("SSE", "KiB/conn", 1, "less"),
        Metric("WebSocket", "KiB/conn", 1, "less"),
        Metric("memory", "MiB", 1, "less"),
        Metric("bytes/session", "", 0, "less"),
        Metric("ready after", "ms", 0, "less"),
    )
}


class Spread(Struct, frozen=True):
    median: float
    least: float
    most: float
    runs: int


def spread(values: Sequence[float]) -> Spread:
    """Raises `ValueError` of no values."""
    if not values:
        raise ValueError("no run, no median")
    return Spread(median(values), min(values), max(values), len(values))


class Row(Struct):
    """One row of the benchmark: of each peer (or variant), each metric's value in each round, in turn."""

    name: str
    says: str
    figures: dict[str, dict[str, list[float]]] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    notes: list[str] = []

    def add(self, who: str, values: dict[str, float]) -> None:
        of = self.figures.setdefault(who, {})
        for name, value in values.items():
            of.setdefault(name, []).append(value)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def spreads(self) -> dict[str, dict[str, Spread]]:
        return {
            who: {name: spread(values) for name, values in of.items() if values} for who, of in self.figures.items()
        }

    def median_of(self, who: str, metric: str) -> float | None:
        values = self.figures.get(who, {}).get(metric)
        return median(values) if values else None


class Results(Struct):
    """One run. `peers`: what each is; `left_out`: and why."""

    at: str
    command: str
    machine: str
    versions: dict[str, str]
    peers: dict[str, str]
    left_out: dict[str, str] = {}
    rows: list[Row] = []


def number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def cells(spreads: dict[str, Spread], names: Sequence[str]) -> list[str]:
    """A median, and the range of the runs where they differ."""
    written = []
    for name in names:
        found = spreads.get(name)
        if found is None:
            written.append("–")
            continue
        digits = METRICS[name].digits
        text = number(found.median, digits)
        if found.most > found.least:
            text += f" ({number(found.least, digits)}–{number(found.most, digits)})"
        written.append(text)
    return written


def heads(row: Row) -> list[str]:
    """The metrics of a row, in the order of `METRICS`."""
    return [name for name in METRICS if any(name in of for of in row.figures.values())]


def table(row: Row) -> str:
    """A row as text in columns."""
    names = heads(row)
    titles = ["", *(f"{name} {METRICS[name].unit}".strip() for name in names)]
    lines = [titles, *([who, *cells(of, names)] for who, of in row.spreads().items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    written = [f"{row.name}: {row.says}"]
    for line in lines:
        padded = [
            line[0].ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)),
        ]
        written.append("  ".join(padded).rstrip())
    return "\n".join([*written, *(f"  ! {note}" for note in row.notes)])
