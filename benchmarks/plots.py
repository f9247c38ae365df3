"""Plain SVG for the results page: bars with intervals, distributions, and curves. No dependency, no
state.

The same numbers give the same bytes, so that a plot changes in the repository only with its result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, ROW, LEFT, RIGHT, TOP = 820, 26, 300, 110, 44
COLOURS = ("#3465a4", "#cc6f00", "#4e9a06", "#75507b", "#888a85", "#c4263c")
_FONT = 'font-family="sans-serif" font-size="13"'


class Bar(NamedTuple):
    """One value, with the ends of its interval where it has one, and what is written beside it."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    mark: float | None = None
    """Another value to show on the bar, for example a limit."""


class Distribution(NamedTuple):
    """Counts between two values, in bins of equal ratio."""

    label: str
    low: float
    high: float
    counts: Sequence[int]


class Panel(NamedTuple):
    """Curves over one pair of axes."""

    label: str
    x_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """Points (x, y) by what the curve is of; the names are the same in all panels of a row."""
    logarithmic: bool = False
    """The x axis."""
    apart: frozenset[str] = frozenset()
    """Names of curves whose points are not joined."""


def bars(title: str, rows: Sequence[Bar], unit: str, *, logarithmic: bool = False) -> str:
    """A horizontal bar for each value."""
    values = [v for r in rows for v in (r.value, r.high, r.mark, r.low) if v is not None and v > 0]
    most = max(values)
    least = min(values) / 2 if logarithmic else 0.0

    def x(value: float) -> float:
        if not logarithmic:
            share = value / most
        else:
            share = math.log(max(value, least) / least) / math.log(most / least)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    body: list[str] = []
    for number, row in enumerate(rows):
        y = TOP + number * ROW
        body.append(_text(LEFT - 8, y + 14, row.label, "end"))
        colour = COLOURS[number % 2]
        width = x(row.value) - LEFT
        body.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>')
        if row.low is not None and row.high is not None:
            body.append(_line(x(row.low), y + 9, x(row.high), y + 9))
        if row.mark is not None:
            body.append(_line(x(row.mark), y - 2, x(row.mark), y + 20))
        end = max(x(row.value), x(row.high or 0) if row.high else 0)
        body.append(_text(end + 6, y + 14, row.note or f"{row.value:.3g} {unit}"))
    return _picture(title, body, TOP + len(rows) * ROW + 10)


def distributions(title: str, rows: Sequence[Distribution], unit: str) -> str:
    """Histograms one below the other, over one logarithmic axis."""
    least, most = min(r.low for r in rows), max(r.high for r in rows)
    span = math.log(most / least) or 1.0
    height, body = 70, list[str]()

    def x(value: float) -> float:
        return LEFT + math.log(value / least) / span * (WIDTH - LEFT - RIGHT)

    for number, row in enumerate(rows):
        base = TOP + (number + 1) * height
        body.append(_text(LEFT - 8, base - 20, row.label, "end"))
        step = (row.high / row.low) ** (1 / len(row.counts))
        for place, count in enumerate(row.counts):
            left, right = x(row.low * step**place), x(row.low * step ** (place + 1))
            tall = (height - 16) * count / max(row.counts)
            body.append(
                f'<rect x="{left:.1f}" y="{base - tall:.1f}" width="{max(right - left - 1, 1):.1f}"'
                f' height="{tall:.1f}" fill="{COLOURS[number % len(COLOURS)]}"/>'
            )
        body.append(_line(LEFT, base, WIDTH - RIGHT, base))
    bottom = TOP + len(rows) * height + 18
    for value, anchor in ((least, "start"), (math.sqrt(least * most), "middle"), (most, "end")):
        body.append(_text(x(value), bottom, f"{value:.3g} {unit}", anchor))
    return _picture(title, body, bottom + 12)


def curves(title: str, rows: Sequence[Sequence[Panel]]) -> str:
    """Panels side by side, each row with its own legend."""
    width, height, body = WIDTH / max(map(len, rows)), 250, list[str]()
    for number, row in enumerate(rows):
        top = TOP + number * height
        names = list(dict.fromkeys(name for panel in row for name in panel.lines))
        for place, name in enumerate(names):
            colour = COLOURS[place % len(COLOURS)]
            left = 16 + place * 130
            ends = f'x1="{left}" y1="{top}" x2="{left + 18}" y2="{top}"'
            body.append(f'<line {ends} stroke="{colour}" stroke-width="3"/>')
            body.append(_text(left + 24, top + 4, name))
        for column, panel in enumerate(row):
            body += _panel(panel, column * width + 60, top + 36, width - 80, height - 100, names)
    return _picture(title, body, TOP + len(rows) * height)


def _panel(
    panel: Panel, left: float, top: float, width: float, height: float, names: Sequence[str]
) -> list[str]:
    """One pair of axes with its curves; the ends of the axes are the extremes of the data."""
    points = [point for line in panel.lines.values() for point in line]
    scale = math.log if panel.logarithmic else float
    (x_low, x_high), (y_low, y_high) = (
        (min(values), max(values)) for values in zip(*points, strict=True)
    )
    x_span, y_span = (scale(x_high) - scale(x_low)) or 1.0, (y_high - y_low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (scale(x) - scale(x_low)) / x_span, (y - y_low) / y_span
        return left + across * width, top + (1 - up) * height

    body = [
        _text(left, top - 10, panel.label),
        _line(left - 6, top, left - 6, top + height),
        _line(left - 6, top + height + 6, left + width, top + height + 6),
        _text(left - 10, top + 10, f"{y_high:.3g}", "end"),
        _text(left - 10, top + height, f"{y_low:.3g}", "end"),
        _text(left, top + height + 22, f"{x_low:.3g}"),
        _text(left + width / 2, top + height + 22, panel.x_label, "middle"),
        _text(left + width, top + height + 22, f"{x_high:.3g}", "end"),
    ]
    for name, line in panel.lines.items():
        colour = COLOURS[names.index(name) % len(COLOURS)]
        spots = [place(*point) for point in line]
        track = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        if name not in panel.apart:
            body.append(
                f'<polyline points="{track}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
    return body


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {_FONT}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="#2e3436" stroke-width="2"/>'


def _picture(title: str, body: Sequence[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}">'
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>'
    return "\n".join([head, ground, _text(16, 24, title), *body, "</svg>"]) + "\n"
