"""Plain SVG for the results page: bars with intervals, and distributions. No dependency, no state.

The same numbers give the same bytes, so that a plot changes in the repository only with its result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, ROW, LEFT, RIGHT, TOP = 820, 26, 300, 110, 44
COLOURS = ("#3465a4", "#cc6f00", "#4e9a06", "#75507b", "#888a85")
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


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {_FONT}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="#2e3436" stroke-width="2"/>'


def _picture(title: str, body: Sequence[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}">'
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>'
    return "\n".join([head, ground, _text(16, 24, title), *body, "</svg>"]) + "\n"
