"""Series that are not the run's: another reconstruction of it, a scout, or the run begun anew.

A second series beside the run (a motion-corrected copy, a phase image) comes in turn with it and
is left out. When the scanner is stopped and started again, the run's own series falls silent and
another one of the same shape takes over: a restart. It is told by frames, not by time, so that a
slow share cannot be mistaken for one.
"""

from __future__ import annotations

from collections import Counter

from .frame import Frame

RESTART_AFTER = 3
"""Frames of another series, with none of the run's own between them, that make a restart."""
_TOLERATED = RESTART_AFTER - 1
"""Frames of it that may have come before the last, delayed, frame of the run's own."""
_SERIES_KEPT = 64
_OTHERS = "others"
"""Where further series are counted: a folder that holds so many is not a run's."""


class ForeignSeries:
    """Frames of other series, held until it is clear what they are."""

    def __init__(self) -> None:
        self._settled: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._held: dict[str, list[Frame]] = {}

    def add(self, frame: Frame, may_restart: bool) -> list[Frame]:
        """Take a frame in.

        Parameters
        ----------
        frame : Frame
            Of a series that is not the run's.
        may_restart : bool
            Whether it could be the run begun anew: it has the run's shape and the run is not over.

        Returns
        -------
        frames : list
            All of the new attempt so far if this makes it a restart, else nothing.
        """
        known = self._settled[frame.series] > _TOLERATED or len(self._held) >= _SERIES_KEPT
        if not may_restart or (known and frame.series not in self._held):
            self._settle(frame.series, 1)
            return []
        held = self._held.setdefault(frame.series, [])
        held.append(frame)
        return self._held.pop(frame.series) if len(held) >= RESTART_AFTER else []

    def settle(self) -> None:
        """The run's own series goes on, so all frames that are held are foreign."""
        for series, frames in self._held.items():
            self._settle(series, len(frames))
        self._held.clear()

    def retire(self, series: str) -> None:
        """A series that was the run's cannot become so again."""
        self._settled[series] += RESTART_AFTER
        self._taken[series] += RESTART_AFTER

    def take_settled(self) -> dict[str, int]:
        """Frames of each series that turned out to be foreign since the last call."""
        fresh = {s: n - self._taken[s] for s, n in self._settled.items() if n > self._taken[s]}
        self._taken.update(fresh)
        return fresh

    def _settle(self, series: str, frames: int) -> None:
        room = series in self._settled or len(self._settled) < _SERIES_KEPT
        self._settled[series if room else _OTHERS] += frames
