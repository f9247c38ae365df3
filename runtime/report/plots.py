"""Plots of a run as SVG that stands within a page: motion, signal, latency, and what went wrong.

Drawn by matplotlib, the optional `plot` extra. Each plot is made twice, for wide and for narrow
screens, since letters that shrink with a picture cannot be read on a phone. Lines and letters take
the page's colour, so that they can be read on a dark page, too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError
from ..realtime.motion import SpikeLimits
from .story import Attempt, Story

COLOURS = ("#2f78c4", "#d1760b", "#4c9a2a")
"""Told apart with every form of colour blindness, on white and on black."""
BAD = "#d2452d"
_INK = "#010203"
"""Stands for the page's own colour until the plot is in it."""
_SIZES = {"wide": (9.6, 9.0), "narrow": (4.6, 10.5)}
"""Width in inches, size of letters in points."""
_ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0}
"""Where legends stand: nothing is under them there."""
_SHOWN = 16
"""Kinds of faults that a plot has a row for."""


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


def run_plots(story: Story, attempt: Attempt) -> list[Plot]:
    """All plots of one attempt; none if no volume came.

    Raises
    ------
    MissingExtraError
        The extra `plot` is not installed.
    """
    if not attempt.volumes:
        return []
    t = np.array([story.time_s(attempt, one) for one in sorted(attempt.volumes)])
    with _matplotlib(story.time_s(attempt, max(attempt.volumes) + 1)) as make:
        plots = [
            make("Motion", _motion_words(attempt), 3.6, _motion(t, attempt)),
            make("Displacement and DVARS", _spike_words(attempt), 3.6, _jumps(t, attempt)),
        ]
        if np.isfinite(attempt.series("latency_ms")).any():
            words = _latency_words(story, attempt)
            plots.append(make("Latency", words, 3.9, _latency(t, story, attempt)))
        rows = _marks(story, attempt)
        if any(mark.times for mark in rows):
            words = "Bars are trials, from their onset to the end of the refined window."
            height = 0.9 + 0.27 * (len(rows) + 1)
            plots.append(make("Trials, gaps and faults", words, height, _axis(story, attempt)))
    return plots


def _motion(t: NDArray[Any], attempt: Attempt) -> Draw:
    def draw(figure: Any, narrow: bool) -> None:
        moved = np.array([attempt.volumes[one]["motion"] for one in sorted(attempt.volumes)])
        shifts, turns = figure.subplots(2, 1, sharex=True)
        for axes, values, names, unit in (
            (shifts, moved[:, :3], "xyz", "shift, mm"),
            (turns, np.degrees(moved[:, 3:]), ("about x", "about y", "about z"), "turn, degrees"),
        ):
            for column, name in enumerate(names):
                axes.plot(t, values[:, column], color=COLOURS[column], label=name, linewidth=1.2)
            axes.set_ylabel(unit)
            axes.legend(ncols=3, **_ABOVE)

    return draw


def _jumps(t: NDArray[Any], attempt: Attempt) -> Draw:
    def draw(figure: Any, narrow: bool) -> None:
        limit = SpikeLimits().displacement_mm
        spikes = attempt.series("spike") > 0
        above, below = figure.subplots(2, 1, sharex=True)
        for axes, name, unit, colour in (
            (above, "displacement_mm", "FD, mm", COLOURS[0]),
            (below, "dvars", "DVARS, %", COLOURS[1]),
        ):
            values = attempt.series(name)
            axes.plot(t, values, color=colour, linewidth=1.2)
            axes.plot(t[spikes], values[spikes], "x", color=BAD, label="spike")
            axes.set_ylim(bottom=0)
            axes.set_ylabel(unit)
        if np.nanmax(attempt.series("displacement_mm")) > 0.5 * limit:
            above.axhline(limit, color=BAD, linestyle="--", linewidth=1, label="limit")
        if spikes.any():
            above.legend(ncols=2, **_ABOVE)

    return draw


def _latency(t: NDArray[Any], story: Story, attempt: Attempt) -> Draw:
    answers = [
        (story.time_s(attempt, attempt.first) + end_s, answer)
        for end_s, answer in answer_times(story, attempt)
        if "total" in answer["latency_ms"]
    ]

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        axes.plot(
            t, attempt.series("latency_ms"), ".", color=COLOURS[0], label="volume", markersize=4
        )
        for revision, (name, marker) in enumerate((("fast answer", "^"), ("refined answer", "s"))):
            rows = [(at, one) for at, one in answers if one["revision"] == revision]
            if rows:
                x, y = zip(*((at, one["latency_ms"]["total"]) for at, one in rows), strict=True)
                colour = COLOURS[revision + 1]
                axes.plot(x, y, marker, color=colour, label=name, markersize=5, linestyle="none")
        missed = [(at, one["latency_ms"]["total"]) for at, one in answers if one["missed_deadline"]]
        if missed:
            x, y = zip(*missed, strict=True)
            axes.plot(x, y, "o", mfc="none", color=BAD, markersize=9, label="missed deadline")
        axes.axhline(1e3 * story.tr_s, color=_INK, linewidth=1, label="one TR")
        deadline_s = story.setting.get("deadline_s")
        if deadline_s and abs(deadline_s - story.tr_s) > 1e-6 and deadline_s < 100 * story.tr_s:
            axes.axhline(1e3 * deadline_s, color=BAD, linewidth=1, linestyle="--", label="deadline")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("ms after arrival")
        axes.legend(ncols=2 if narrow else 6, **_ABOVE)

    return draw


@dataclass(frozen=True, slots=True)
class _Mark:
    """A row of the time axis."""

    name: str
    times: list[float]
    colour: str


def _marks(story: Story, attempt: Attempt) -> list[_Mark]:
    """What went wrong, and when."""

    def seconds(numbers: Sequence[int]) -> list[float]:
        return [story.time_s(attempt, number) + story.tr_s / 2 for number in numbers]

    spikes = [one for one in sorted(attempt.volumes) if attempt.volumes[one]["spike"]]
    late = [at for at, one in answer_times(story, attempt) if one["missed_deadline"]]
    rows = [
        _Mark("gap", seconds(attempt.missing()), BAD),
        _Mark("spike", seconds(spikes), COLOURS[1]),
        _Mark("missed deadline", late, BAD),
    ]
    kinds: dict[str, list[int]] = {}
    for fault in attempt.faults:
        if fault.get("volume") is not None and fault["fault"] != "missing":
            kinds.setdefault(fault["fault"], []).append(fault["volume"])
    rows += [_Mark(kind, seconds(numbers), _INK) for kind, numbers in sorted(kinds.items())]
    return [row for row in rows[:_SHOWN] if row.times] + [
        _Mark("trials", [one.event.onset_s or 0.0 for one in attempt.trials.values()], COLOURS[0])
    ]


def _axis(story: Story, attempt: Attempt) -> Draw:
    rows = _marks(story, attempt)
    window_s = float(story.header["refined_s"])

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            if row.name == "trials":
                for k, start in enumerate(row.times):  # windows of neighbours overlap
                    height = place - 0.12 + 0.24 * (k % 2)
                    axes.barh(height, window_s, left=start, height=0.2, color=COLOURS[0], alpha=0.3)
            axes.plot(row.times, [place] * len(row.times), "|", color=row.colour, markersize=11)
        axes.set_yticks(range(len(rows)), [f"{row.name}: {len(row.times)}" for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")

    return draw


def answer_times(story: Story, attempt: Attempt) -> list[tuple[float, Any]]:
    """When the window of each answer closed, in seconds of the run, with the answer."""
    windows = (float(story.header["fast_s"]), float(story.header["refined_s"]))
    end_s = story.time_s(attempt, max(attempt.volumes, default=attempt.first) + 1)
    return [
        (min(answer["onset_s"] + windows[revision], end_s), answer)
        for trial in attempt.trials.values()
        for revision, answer in sorted(trial.answers.items())
    ]


def _motion_words(attempt: Attempt) -> str:
    moved = np.array([one["motion"] for one in attempt.volumes.values()])
    far, turned = np.abs(moved[:, :3]).max(), np.degrees(np.abs(moved[:, 3:]).max())
    return f"Against the first volume: at most {far:.2f} mm and {turned:.2f} degrees."


def _spike_words(attempt: Attempt) -> str:
    fd, dvars = attempt.series("displacement_mm"), attempt.series("dvars")
    spikes = int(attempt.series("spike").sum())
    return (
        f"Framewise displacement: mean {np.nanmean(fd):.2f}, most {np.nanmax(fd):.2f} mm. DVARS: "
        f"median {np.nanmedian(dvars):.2f} % of the brightness. Spikes, which have no weight in "
        f"the fit: {spikes} of {len(fd)} volumes."
    )


def _latency_words(story: Story, attempt: Attempt) -> str:
    ms = attempt.series("latency_ms")
    over = int((ms > 1e3 * story.tr_s).sum())
    return (
        f"From a volume's arrival until it is in the fit: median {np.nanmedian(ms):.0f}, most "
        f"{np.nanmax(ms):.0f} ms, {over} longer than a TR. Answers count from the arrival of the "
        "last volume that they know to their end."
    )


@contextmanager
def _matplotlib(end_s: float) -> Generator[Callable[[str, str, float, Draw], Plot]]:
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
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
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
    return svg.replace(_INK, "currentColor").strip()
