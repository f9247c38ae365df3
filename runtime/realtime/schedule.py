"""Which answers are due once a volume is there."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from .stimuli import Stimulus

_EDGE = 1e-6
"""Share of a TR within which a window ends with a volume, against rounding."""


@dataclass(frozen=True, slots=True, order=True)
class Due:
    """An answer that is to be given."""

    last: int
    """The last volume that it knows, counted from the first kept one."""
    trial: int
    revision: int
    """0 for the fast answer, 1 for the refined one."""
    cut_s: float = 0.0
    """Seconds of its window that lie behind the end of the run."""


class Schedule:
    """The answers of a run, in the order of the volumes that complete them.

    Parameters
    ----------
    tr_s : float
        Seconds between two volumes of the run.
    volumes : int
        Volumes of the run, discarded ones not counted.
    windows_s : sequence of float
        Seconds after the onset that each revision knows. A volume in which a window ends belongs
        to it.

    Examples
    --------
    >>> schedule = Schedule(1.5, 100, (7.5, 30.0))
    >>> schedule.add(0, Stimulus(onset_s=3.0, duration_s=3.0))
    >>> schedule.reach(5), schedule.reach(6)
    ([], [Due(last=6, trial=0, revision=0, cut_s=0.0)])
    """

    def __init__(self, tr_s: float, volumes: int, windows_s: tuple[float, ...]) -> None:
        self._tr_s = tr_s
        self._volumes = volumes
        self._windows_s = windows_s
        self._waiting: list[Due] = []

    def add(self, trial: int, stimulus: Stimulus) -> None:
        """Take in a trial, before or after its windows have closed."""
        for revision, window_s in enumerate(self._windows_s):
            end_s = stimulus.onset_s + window_s
            last = math.ceil(end_s / self._tr_s - _EDGE) - 1
            cut_s = max(0.0, end_s - self._volumes * self._tr_s)
            last = max(min(last, self._volumes - 1), 0)
            heapq.heappush(self._waiting, Due(last, trial, revision, cut_s))

    def reach(self, volume: int) -> list[Due]:
        """Answers that are due now that a volume, or a later one, is there; each is given once."""
        due: list[Due] = []
        while self._waiting and self._waiting[0].last <= volume:
            due.append(heapq.heappop(self._waiting))
        return due

    def rest(self) -> list[Due]:
        """All answers that are still due; the run is over."""
        due, self._waiting = sorted(self._waiting), []
        return due
