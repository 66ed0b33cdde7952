"""The results as one HTML page that needs nothing else. Pure: results in, text out."""

from __future__ import annotations

from html import escape

from gateway.load import plots
from gateway.load.page import STYLE
from gateway.load.plots import Series
from tests.bench.results import METRICS, Results, Row, cells, heads

BARS = (
    "body{max-width:1240px}td,th{white-space:nowrap}p.note{color:var(--c2)}td.bar{min-width:8rem}"
    "td.bar i{display:block;height:.9em;background:var(--c8)}td.bar i.own{background:var(--c0)}"
)


def render(results: Results) -> str:
    """The whole page."""
    said = " · ".join(f"{name} {text}" for name, text in results.versions.items())
    peers = "".join(f"<li><b>{escape(name)}</b>: {escape(says)}</li>" for name, says in results.peers.items())
    missing = "".join(
        f'<li class="dim"><b>{escape(name)}</b> left out: {escape(why)}</li>' for name, why in results.left_out.items()
    )
    colours = {name: number for number, name in enumerate(results.peers)}
    rows = "".join(_row(row, colours) for row in results.rows)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>attachgate bench</title><style>{STYLE}{BARS}</style></head><body><h1>attachgate bench</h1>"
        f'<p class="dim">{escape(results.at)} · {escape(results.machine)}<br>{escape(said)}<br>'
        f"<code>{escape(results.command)}</code></p><ul>{peers}{missing}</ul>"
        '<p class="dim">Medians, and the range of all runs. The proxy has one core; load, upstream and Redis share the'
        " other, so where the proxy's core is not busy, compare its CPU time.</p>"
        f"{rows}{_by_rate(results, colours)}</body></html>\n"
    )


def _row(row: Row, colours: dict[str, int]) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in row.notes)
    return (
        f'<h2>{escape(row.name)}</h2><p class="dim">{escape(row.says)}</p>{notes}{_table(row)}{_curves(row, colours)}'
    )


def _table(row: Row) -> str:
    names = heads(row)
    leading = next((name for name in names if METRICS[name].better), names[0]) if names else ""
    spreads = row.spreads()
    most = max((of[leading].median for of in spreads.values() if leading in of), default=0.0)
    titles = "".join(f"<th class=n>{escape(f'{name} {METRICS[name].unit}'.strip())}</th>" for name in names)
    lines = []
    for who, of in spreads.items():
        share = 100 * of[leading].median / most if leading in of and most else 0
        own = ' class="own"' if who.startswith("gateway") else ""
        figures = "".join(f"<td class=n>{escape(text)}</td>" for text in cells(of, names))
        lines.append(
            f'<tr><td>{escape(who)}</td><td class="bar"><i{own} style="width:{share:.1f}%"></i></td>{figures}</tr>'
        )
    return (
        f'<div class="scroll"><table><tr><th></th><th>{escape(leading)}</th>{titles}</tr>{"".join(lines)}</table></div>'
    )


def _curves(row: Row, colours: dict[str, int]) -> str:
    """Of the last round."""
    curves = [Series(who, points, colours.get(who, 8)) for who, points in row.curves.items()]
    values = [ms for curve in curves for _, ms in curve.points if ms > 0]
    if not values:
        return ""
    x = plots.nines("percentile", max(curve.points[-1][0] for curve in curves))
    return plots.lines(x, plots.logarithmic("latency, ms", min(values), max(values)), curves)


def _by_rate(results: Results, colours: dict[str, int]) -> str:
    """p99 of each peer over the shares of the maximum."""
    shares = {row.name: row for row in results.rows if row.name.removeprefix("latency-").isdigit()}
    if len(shares) < 2:
        return ""
    points: dict[str, list[tuple[float, float]]] = {}
    for name, row in shares.items():
        for who in row.figures:
            p99 = row.median_of(who, "p99")
            if p99:
                points.setdefault(who, []).append((float(name.removeprefix("latency-")), p99))
    values = [ms for of in points.values() for _, ms in of]
    if not values:
        return ""
    series = [Series(who, of, colours.get(who, 8)) for who, of in points.items()]
    x = plots.linear("% of the slowest serious peer's maximum", 100)
    return f"<h2>p99 by rate</h2>{plots.lines(x, plots.logarithmic('p99, ms', min(values), max(values)), series)}"
