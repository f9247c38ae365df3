"""A plot of a run as SVG that stands within a page.

Drawn by matplotlib, the optional `plot` extra. Each plot is made twice, for wide and for narrow
screens, since letters that shrink with a picture cannot be read on a phone. Lines and letters take
the page's colour, so that they can be read on a dark page, too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import MissingExtraError

COLOURS = ("#2f78c4", "#d1760b", "#4c9a2a")
"""Told apart with every form of colour blindness, on white and on black."""
BAD = "#d2452d"
INK = "#010203"
"""Stands for the page's own colour until the plot is in it."""
_SIZES = {"wide": (9.6, 9.0), "narrow": (4.6, 10.5)}
"""Width in inches, size of letters in points."""
ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0}
"""Where legends stand: nothing is under them there."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of the page."""

    title: str
    said: str
    """The same in words, for those who cannot see it, and below the plot for all others."""
    wide: str
    """SVG."""
    narrow: str


Draw = Callable[[Any, bool], None]
"""Draws into a figure; told whether it is a narrow one."""


@contextmanager
def plotting(end_s: float) -> Generator[Callable[[str, str, float, Draw], Plot]]:
    """How plots are made: of a title, words, a height in inches, and how they are drawn.

    Parameters
    ----------
    end_s : float
        Where the time axis ends.

    Raises
    ------
    MissingExtraError
        The extra `plot` is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingExtraError(
            f"{exc.name} is not installed; run pip install 'scanside[plot]'"
        ) from exc

    def svg(title: str, height: float, draw: Draw, size: str) -> str:
        width, letters = _SIZES[size]
        style: Any = _STYLE | {"font.size": letters}
        with rc_context(style):
            figure = Figure(figsize=(width, height), layout="constrained")
            FigureCanvasSVG(figure)
            draw(figure, size == "narrow")
            for axes in figure.axes:
                axes.spines[["top", "right"]].set_visible(False)
                axes.set_xlim(-0.01 * end_s, 1.01 * end_s)
            figure.axes[-1].set_xlabel("seconds")
            out = io.StringIO()
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        return _inline(out.getvalue(), f"{re.sub('[^a-z]+', '-', title.lower())}-{size}")

    def make(title: str, said: str, height: float, draw: Draw) -> Plot:
        wide, narrow = (svg(title, height, draw, size) for size in ("wide", "narrow"))
        return Plot(title, said, wide, narrow)

    yield make


_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "scanside",
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
}


def _inline(svg: str, name: str) -> str:
    """A file of SVG as an element of a page: no prolog, no addresses, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # it would hold for the whole page
    return svg.replace(INK, "currentColor").strip()
