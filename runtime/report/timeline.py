"""What happened in a run and when, as rows over one time axis: trials, gaps, faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .figures import BAD, COLOURS, INK, Draw
from .story import Attempt, Story

_SHOWN = 16
"""Kinds of faults that a plot has a row for."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A row of the time axis."""

    name: str
    times: list[float]
    colour: str


def marks(story: Story, attempt: Attempt) -> list[Mark]:
    """What went wrong, and when."""

    def seconds(numbers: Sequence[int]) -> list[float]:
        return [story.time_s(attempt, number) + story.tr_s / 2 for number in numbers]

    spikes = [one for one in sorted(attempt.volumes) if attempt.volumes[one]["spike"]]
    late = [at for at, one in answer_times(story, attempt) if one["missed_deadline"]]
    rows = [
        Mark("gap", seconds(attempt.missing()), BAD),
        Mark("spike", seconds(spikes), COLOURS[1]),
        Mark("missed deadline", late, BAD),
    ]
    kinds: dict[str, list[int]] = {}
    for fault in attempt.faults:
        if fault.get("volume") is not None and fault["fault"] != "missing":
            kinds.setdefault(fault["fault"], []).append(fault["volume"])
    rows += [Mark(kind, seconds(numbers), INK) for kind, numbers in sorted(kinds.items())]
    return [row for row in rows[:_SHOWN] if row.times] + [
        Mark("trials", [one.event.onset_s or 0.0 for one in attempt.trials.values()], COLOURS[0])
    ]


def time_axis(story: Story, attempt: Attempt) -> Draw:
    rows = marks(story, attempt)
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
