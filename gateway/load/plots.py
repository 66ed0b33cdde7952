"""Small SVG plots, made by hand: lines and stacked bars on linear or logarithmic axes. Pure: numbers in, markup
out.

The plotting libraries at hand bring a numeric stack or scripts from elsewhere, for three figures of a few
hundred points; this is the whole of what they need. Colours are CSS classes (`c0`, `c1`, …), so that the
page decides them for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from msgspec import Struct

WIDTH: Final = 860
HEIGHT: Final = 300
LEFT: Final = 64
RIGHT: Final = 16
TOP: Final = 14
BOTTOM: Final = 44

Point = tuple[float, float]


class Axis(Struct, frozen=True):
    """`ticks` are (value, text); `to` maps a value to 0 … 1."""

    label: str
    ticks: list[tuple[float, str]]
    to: Callable[[float], float]


class Series(Struct, frozen=True):
    """`colour` is the number of its class."""

    name: str
    points: Sequence[Point]
    colour: int


def linear(label: str, most: float) -> Axis:
    """From 0 to `most`, with four to ten round ticks."""
    most = max(most, 1e-9)
    step = 10 ** math.floor(math.log10(most))
    step = next(step * factor for factor in (0.1, 0.2, 0.5, 1) if most / (step * factor) <= 10)
    ticks = [(n * step, f"{n * step:g}") for n in range(int(most / step + 1e-9) + 1)]
    return Axis(label, ticks, lambda value: value / most)


def logarithmic(label: str, least: float, most: float) -> Axis:
    """From the power of ten below `least` to the one above `most`."""
    low = math.floor(math.log10(max(least, 1e-6)))
    high = max(low + 1, math.ceil(math.log10(max(most, 1e-6))))
    ticks = [(10.0**power, f"{10.0**power:g}") for power in range(low, high + 1)]
    return Axis(label, ticks, lambda value: (math.log10(max(value, 10.0**low)) - low) / (high - low))


def nines(label: str, most: float) -> Axis:
    """Percentiles from 0 to `most`, each further nine as wide as the first."""

    def at(percentile: float) -> float:
        return -math.log10(max(1e-9, 1 - percentile / 100))

    width = max(at(most), 1.0)
    shown = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
    ticks = [(percentile, f"{percentile:g}") for percentile in shown if at(percentile) <= width + 1e-9]
    return Axis(label, ticks, lambda percentile: at(percentile) / width)


def lines(x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """One line for each series."""
    drawn = []
    for one in series:
        if one.points:
            path = " ".join(f"{_x(x, px):.1f},{_y(y, py):.1f}" for px, py in one.points)
            drawn.append(f'<polyline class="line c{one.colour}" points="{path}"/>')
        drawn.extend(
            f'<circle class="spot c{one.colour}" cx="{_x(x, px):.1f}" cy="{_y(y, py):.1f}" r="5">'
            f"<title>{escape(one.name)}: {py:g} at {px:g}</title></circle>"
            for px, py in one.points
        )
    return _figure(x, y, drawn, series)


def bars(x: Axis, y: Axis, series: Sequence[Series], line: Series, width: float) -> str:
    """Bars ending at each x, `width` long, stacked series by series; and one line over them."""
    drawn = []
    below: dict[float, float] = {}
    for one in series:
        for px, py in one.points:
            if py <= 0:
                continue
            base = below.get(px, 0.0)
            below[px] = base + py
            left, right = _x(x, max(0.0, px - width)), _x(x, px)
            top, bottom = _y(y, base + py), _y(y, base)
            drawn.append(
                f'<rect class="bar c{one.colour}" x="{left:.1f}" y="{top:.1f}"'
                f' width="{max(0.5, right - left - 0.5):.1f}" height="{max(0.0, bottom - top):.1f}">'
                f"<title>{escape(one.name)}: {py:.0f} a second at {px:g} s</title></rect>"
            )
    path = " ".join(f"{_x(x, px):.1f},{_y(y, py):.1f}" for px, py in line.points)
    drawn.append(f'<polyline class="line c{line.colour}" points="{path}"/>')
    return _figure(x, y, drawn, [*series, line])


def _x(axis: Axis, value: float) -> float:
    return LEFT + min(1.0, max(0.0, axis.to(value))) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - min(1.0, max(0.0, axis.to(value))) * (HEIGHT - TOP - BOTTOM)


def _figure(x: Axis, y: Axis, drawn: list[str], series: Sequence[Series]) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y.label)} by {escape(x.label)}">']
    for value, text in y.ticks:
        at = _y(y, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in x.ticks:
        at = _x(x, value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    middle = (TOP + bottom) / 2
    turned = f'transform="rotate(-90 14 {middle})"'
    parts.append(f'<text x="14" y="{middle}" text-anchor="middle" {turned}>{escape(y.label)}</text>')
    parts += [*drawn, "</svg>"]
    names = "".join(f'<li><i class="c{one.colour}"></i>{escape(one.name)}</li>' for one in series)
    return f"<figure>{''.join(parts)}<ul>{names}</ul></figure>"
