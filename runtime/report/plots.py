"""Plots of a run: motion, signal, latency, what went wrong. Each says in words what it shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..realtime.motion import SpikeLimits
from .figures import ABOVE, BAD, COLOURS, INK, Draw, Plot, plotting
from .story import Attempt, Story
from .timeline import answer_times, marks, time_axis


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
    with plotting(story.time_s(attempt, max(attempt.volumes) + 1)) as make:
        plots = [
            make("Motion", _motion_words(attempt), 3.6, _motion(t, attempt)),
            make("Displacement and DVARS", _spike_words(attempt), 3.6, _jumps(t, attempt)),
        ]
        if np.isfinite(attempt.series("latency_ms")).any():
            words = _latency_words(story, attempt)
            plots.append(make("Latency", words, 3.9, _latency(t, story, attempt)))
        rows = marks(story, attempt)
        if any(mark.times for mark in rows):
            words = "Bars are trials, from their onset to the end of the refined window."
            height = 0.9 + 0.27 * (len(rows) + 1)
            plots.append(make("Trials, gaps and faults", words, height, time_axis(story, attempt)))
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
            axes.legend(ncols=3, **ABOVE)

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
            above.legend(ncols=2, **ABOVE)

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
        axes.axhline(1e3 * story.tr_s, color=INK, linewidth=1, label="one TR")
        deadline_s = story.setting.get("deadline_s")
        if deadline_s and abs(deadline_s - story.tr_s) > 1e-6 and deadline_s < 100 * story.tr_s:
            axes.axhline(1e3 * deadline_s, color=BAD, linewidth=1, linestyle="--", label="deadline")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("ms after arrival")
        axes.legend(ncols=2 if narrow else 6, **ABOVE)

    return draw


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
