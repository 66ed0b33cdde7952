"""The report as one HTML page that needs nothing else: no script, no font, no address. Pure: report in, text
out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from gateway.load import plots
from gateway.load.measure import Second
from gateway.load.plots import Series
from gateway.load.report import Report, describe_breach, describe_difference

MAX_POINTS: Final = 300
MAX_CURVES: Final = 8
MAX_ROWS: Final = 100

STYLE: Final = """
:root{color-scheme:light dark;--ink:#1d2430;--dim:#667085;--paper:#fff;--grid:#e4e7ec;
--c0:#2f6fde;--c1:#e0762a;--c2:#c0362c;--c3:#2e8b57;--c4:#7a52c7;--c5:#0f8b8d;--c6:#b0367f;--c7:#8a7a1f;--c8:#667085}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--dim:#98a2b3;--paper:#14181f;--grid:#2a313c;
--c0:#6ea2ff;--c1:#f2a365;--c2:#f0716a;--c3:#63c08b;--c4:#b094f2;--c5:#58c4c5;--c6:#e486bd;--c7:#cdbb57;--c8:#98a2b3}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:920px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}
p.dim,figure text,figcaption{color:var(--dim)}
.verdict{border-left:5px solid var(--c3);padding:.5rem 1rem;background:color-mix(in srgb,var(--c3) 10%,transparent)}
.verdict.broken{border-color:var(--c2);background:color-mix(in srgb,var(--c2) 10%,transparent)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.2rem .6rem;border-bottom:1px solid var(--grid)}
th.n,td.n{text-align:right}.scroll{overflow-x:auto}
figure{margin:0}svg{width:100%;height:auto}svg text{fill:var(--dim);font-size:12px}.grid{stroke:var(--grid)}
.line{fill:none;stroke:currentColor;stroke-width:1.8}.bar{fill:currentColor}.spot{fill:currentColor;fill-opacity:0}
.spot:hover{fill-opacity:1}
figure ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0 0 0 4rem;margin:0;font-size:13px}
figure i{display:inline-block;width:.8em;height:.8em;background:currentColor;margin-right:.4em}
""" + "".join(f".c{number}{{color:var(--c{number})}}" for number in range(9))


def render(report: Report) -> str:
    """The whole page."""
    options = report.options
    targets = ", ".join(options.targets)
    head = (
        f"{report.at} · {targets} · {options.rooms:,} rooms, {options.rate:g} requests a second for"
        f" {options.duration_seconds:g} s, seed {options.seed}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width"><title>attachgate load</title><style>{STYLE}</style></head><body>'
        f'<h1>attachgate load</h1><p class="dim">{escape(head)}</p>'
        f"{_verdict(report)}{_time_plots(report)}{_percentiles(report)}{_latencies(report)}{_answers(report)}"
        f"{_breaches(report)}</body></html>\n"
    )


def _verdict(report: Report) -> str:
    judgement, slots = report.judgement, report.slots
    says = report.broken or ["The promise and every bound held."]
    slots_said = slots.note or f"{slots.compared:,} compared with the gateway's view, {len(slots.differences):,} differ"
    figures = [
        ("judged by", report.basis),
        ("sessions checked", f"{judgement.sessions:,}"),
        ("over the cap", f"{judgement.over:,}"),
        ("most foreign products in one", f"{judgement.most_foreign:,}"),
        ("slots", slots_said),
        ("requests", f"{report.requests:,}, of them {report.retries:,} retries; {report.error_rate:.2%} failed"),
        ("waited for a connection", f"{report.queued:,} requests, at most {report.longest_wait_ms:.1f} ms"),
        (
            "started late by the harness",
            f"p99 {report.lateness.p99_ms:.1f} ms, at most {report.lateness.max_ms:.1f} ms",
        ),
    ]
    if report.interrupted:
        says = [*says, "Interrupted: the schedule was not run to its end."]
    kind = "verdict broken" if report.broken else "verdict"
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in says)
    return f'<div class="{kind}">{said}</div>{_table(("", ""), figures)}'


def _time_plots(report: Report) -> str:
    rows = thin(report.seconds)
    if not rows:
        return ""
    end = rows[-1].at_seconds
    x = plots.linear("seconds since the beginning", end)
    latencies = [value for row in rows for value in (row.p50_ms, row.max_ms) if value > 0] or [1.0]
    y = plots.logarithmic("latency, ms", min(latencies), max(latencies))
    over_time = [
        Series("p50", [(r.at_seconds, r.p50_ms) for r in rows], 0),
        Series("p99", [(r.at_seconds, r.p99_ms) for r in rows], 1),
        Series("p99.9", [(r.at_seconds, r.p999_ms) for r in rows], 2),
        Series("max", [(r.at_seconds, r.max_ms) for r in rows], 8),
    ]
    per = [1 / max(row.lasted_seconds, 0.001) for row in rows]
    counts = [
        Series("ok", [(r.at_seconds, r.ok * p) for r, p in zip(rows, per, strict=True)], 3),
        Series("refused (4xx)", [(r.at_seconds, r.refused * p) for r, p in zip(rows, per, strict=True)], 1),
        Series("failed (5xx, none)", [(r.at_seconds, r.failed * p) for r, p in zip(rows, per, strict=True)], 2),
    ]
    asked = Series("asked on schedule", [(r.at_seconds, r.asked * p) for r, p in zip(rows, per, strict=True)], 0)
    most = max(max(r.asked, r.ok + r.refused + r.failed) * p for r, p in zip(rows, per, strict=True))
    worst = "" if len(rows) == len(report.seconds) else " Each point is the worst of several seconds."
    bars = plots.bars(x, plots.linear("a second", most * 1.05), counts, asked, max(r.lasted_seconds for r in rows))
    return (
        f'<h2>Latency over time</h2><p class="dim">From when a request should have started.{worst}</p>'
        f"{plots.lines(x, y, over_time)}<h2>Answers over time</h2>{bars}"
    )


def thin(seconds: Sequence[Second]) -> list[Second]:
    """At most about `MAX_POINTS` rows: counts added up, of latencies the worst."""
    step = math.ceil(len(seconds) / MAX_POINTS)
    return [_together(seconds[first : first + step]) for first in range(0, len(seconds), step)] if seconds else []


def _together(rows: Sequence[Second]) -> Second:
    return Second(
        at_seconds=rows[-1].at_seconds,
        lasted_seconds=sum(row.lasted_seconds for row in rows),
        asked=sum(row.asked for row in rows),
        started=sum(row.started for row in rows),
        ok=sum(row.ok for row in rows),
        refused=sum(row.refused for row in rows),
        failed=sum(row.failed for row in rows),
        in_flight=max(row.in_flight for row in rows),
        p50_ms=max(row.p50_ms for row in rows),
        p99_ms=max(row.p99_ms for row in rows),
        p999_ms=max(row.p999_ms for row in rows),
        max_ms=max(row.max_ms for row in rows),
    )


def _percentiles(report: Report) -> str:
    busiest = sorted(report.operations, key=lambda operation: -report.operations[operation].count)
    names = ["all", *(operation.value for operation in busiest[: MAX_CURVES - 1])]
    curves = [Series(name, report.curves[name], number) for number, name in enumerate(names) if report.curves[name]]
    values = [ms for curve in curves for _, ms in curve.points if ms > 0]
    if not values:
        return ""
    x = plots.nines("percentile", max(curve.points[-1][0] for curve in curves))
    y = plots.logarithmic("latency, ms", min(values), max(values))
    return f"<h2>Latency by percentile</h2>{plots.lines(x, y, curves)}"


def _latencies(report: Report) -> str:
    rows = [("all", report.all), *((operation.value, summary) for operation, summary in report.operations.items())]
    figures = [
        (name, f"{s.count:,}", *(f"{ms:,.2f}" for ms in (s.mean_ms, s.p50_ms, s.p90_ms, s.p99_ms, s.p999_ms, s.max_ms)))
        for name, s in rows
    ]
    names = ("operation", "requests", "mean", "p50", "p90", "p99", "p99.9", "max")
    return f"<h2>Latency by operation, ms</h2>{_table(names, figures, 1)}"


def _answers(report: Report) -> str:
    rows = [
        (row.operation.value, str(row.status or "none"), row.reason, f"{row.count:,}")
        for row in report.answers[:MAX_ROWS]
    ]
    return f"<h2>Answers</h2>{_table(('operation', 'status', 'reason', 'count'), rows, 3)}"


def _breaches(report: Report) -> str:
    found = [describe_breach(breach) for breach in report.judgement.breaches[:MAX_ROWS]]
    found += [describe_difference(difference) for difference in report.slots.differences[:MAX_ROWS]]
    found += report.judgement.doubts[:MAX_ROWS]
    if not found:
        return ""
    return f"<h2>What was found</h2><ul>{''.join(f'<li>{escape(text)}</li>' for text in found)}</ul>"


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 99) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if column >= numbers_from else ''}>{escape(text)}</{tag}>"
            for column, text in enumerate(row)
        )

    head = f"<tr>{cells('th', names)}</tr>" if any(names) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}{body}</table></div>'
