"""What the stimuli predict at each volume: one trial against all others.

In least squares separate (LSS; Mumford et al. 2012, doi:10.1016/j.neuroimage.2011.08.076) a trial
has its own regressor and all other trials share one. Both follow from the trial's regressor and the
sum over all trials, so one sum serves every trial.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .drift import Drift
from .hrf import Response


@dataclass(frozen=True, slots=True)
class Event:
    """A stimulus on the run's clock."""

    onset_s: float
    """Seconds after the beginning of the run's first volume."""
    duration_s: float
    """Seconds; 0 for a stimulus that is over at once."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.onset_s):
            raise InputError(f"an event's onset must be a number of seconds; got {self.onset_s}")
        if not (math.isfinite(self.duration_s) and self.duration_s >= 0):
            raise InputError(
                f"an event's duration must be 0 or more seconds; got {self.duration_s}"
            )


class Regressors:
    """The events of a run, and what each of them predicts.

    Parameters
    ----------
    response : Response
    tr_s : float
        Repetition time in seconds.
    slice_time_s : float
        Moment within a TR that a volume stands for: 0 for its first slice, half a TR for its middle
        one, or the time to which slices were corrected.
    """

    def __init__(self, response: Response, tr_s: float, slice_time_s: float = 0.0) -> None:
        if not 0 <= slice_time_s <= tr_s:
            raise InputError(
                f"the slice time must lie within the TR, 0 to {tr_s} s; got {slice_time_s}"
            )
        self.events: list[Event] = []
        self._response = response
        self._tr_s = tr_s
        self._slice_time_s = slice_time_s
        self._waiting: list[tuple[float, int]] = []  # a heap by onset
        self._active: list[int] = []

    def time_s(self, frame: int) -> float:
        """Seconds after the beginning of the run that a volume stands for."""
        return frame * self._tr_s + self._slice_time_s

    def add(self, event: Event) -> int:
        """Take in an event, in any order; its number is returned."""
        trial = len(self.events)
        self.events.append(event)
        heapq.heappush(self._waiting, (event.onset_s, trial))
        return trial

    def reach(self, frame: int) -> list[int]:
        """Go on to a volume; trials that have begun by then are returned once."""
        begun: list[int] = []
        while self._waiting and self._waiting[0][0] <= self.time_s(frame):
            begun.append(heapq.heappop(self._waiting)[1])
        self._active += begun
        return begun

    def pass_by(self, frame: int) -> None:
        """From now on only this volume and later ones are asked about."""
        now = self.time_s(frame)
        self._active = [trial for trial in self._active if now < self.end_s(trial)]

    def of(self, trial: int, frame: int) -> float:
        """A trial's regressor at a volume."""
        event = self.events[trial]
        return self._response.at(self.time_s(frame), event.onset_s, event.duration_s)

    def all(self, frame: int) -> float:
        """Sum of all trials' regressors at a volume that is reached and not passed by. Costs as
        much as there are responses under way."""
        return sum(self.of(trial, frame) for trial in self._active)

    def end_s(self, trial: int) -> float:
        """Second at which a trial's response is over."""
        event = self.events[trial]
        step_s = self._response.step_s  # an event lasts one step at least, from the next step on
        return event.onset_s + event.duration_s + self._response.length_s + 2 * step_s


def lss_design(
    regressors: Regressors,
    trial: int,
    frames: Sequence[int],
    drift: Drift,
    nuisance: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """A trial's whole design, as a fit of all volumes at once takes it.

    The streaming fit never makes it; reports and comparisons do.

    Parameters
    ----------
    regressors : Regressors
        With all events of the run, none of them passed by.
    trial : int
    frames : (T,) int
        Numbers of the volumes that are there.
    drift : Drift
    nuisance : (T, C) float64, optional
        Motion and noise components.

    Returns
    -------
    design : (T, 2 + drift + C) float64
        The trial, all other trials, drift (its constant first), nuisance.
    """
    regressors.reach(max(frames))
    own = np.array([regressors.of(trial, frame) for frame in frames])
    every = np.array([regressors.all(frame) for frame in frames])
    parts = [own[:, None], (every - own)[:, None], np.array([drift.row(f) for f in frames])]
    return np.concatenate(parts if nuisance is None else [*parts, nuisance], axis=1)
