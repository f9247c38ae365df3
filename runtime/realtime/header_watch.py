"""What a run's headers say against each other: repetition time, place, the scanner's clock."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .frame import Frame
from .source import FaultKind

_TR_TOLERANCE = 0.01
"""Relative; headers round to milliseconds."""
_PLACE_TOLERANCE_MM = 0.1
"""Of any corner; less is rounding in a header."""
_SKEW_TOLERANCE_TRS = 0.5
_DAY_S = 86400.0


class HeaderWatch:
    """Compares each frame's header with the run's set-up and with the first frame's.

    Parameters
    ----------
    tr_s : float
        Repetition time in seconds that the run was set up with.
    """

    def __init__(self, tr_s: float) -> None:
        self._tr_s = tr_s
        self._corners: NDArray[np.float64] | None = None
        self._first: tuple[int, float] | None = None
        self._skew_s = 0.0
        self._told: set[FaultKind] = set()

    def look(self, frame: Frame) -> list[tuple[FaultKind, str]]:
        """What a frame's header shows; each thing is told once, a clock each time that it moves."""
        seen = [self._tr(frame), self._place(frame)]
        fresh = [fault for fault in seen if fault and fault[0] not in self._told]
        self._told |= {kind for kind, _ in fresh}
        skew = self._clock(frame)
        return [*fresh, skew] if skew else fresh

    def _tr(self, frame: Frame) -> tuple[FaultKind, str] | None:
        if frame.tr_s is None or abs(frame.tr_s - self._tr_s) <= _TR_TOLERANCE * self._tr_s:
            return None
        detail = f"its header says {frame.tr_s:g} s; the run was set up with {self._tr_s:g} s"
        return FaultKind.WRONG_TR, detail

    def _place(self, frame: Frame) -> tuple[FaultKind, str] | None:
        ends = [(0, n - 1) for n in frame.data.shape]
        box = np.stack(np.meshgrid(*ends, [1]), axis=-1).reshape(8, 4)
        corners = box @ frame.affine.T
        if self._corners is None:
            self._corners = corners
        moved_mm = float(np.abs(corners - self._corners).max())
        if moved_mm <= _PLACE_TOLERANCE_MM:
            return None
        return FaultKind.CHANGED, f"its header moved by {moved_mm:.2f} mm since the first volume"

    def _clock(self, frame: Frame) -> tuple[FaultKind, str] | None:
        if frame.acquired_s is None:
            return None
        if self._first is None:
            self._first = frame.number, frame.acquired_s
        number, acquired_s = self._first
        skew_s = frame.acquired_s - acquired_s - (frame.number - number) * self._tr_s
        skew_s = (skew_s + _DAY_S / 2) % _DAY_S - _DAY_S / 2  # times of day begin again at midnight
        if abs(skew_s - self._skew_s) <= _SKEW_TOLERANCE_TRS * self._tr_s:
            return None
        self._skew_s = skew_s
        return FaultKind.CLOCK_SKEW, f"the scanner's clock is off by {skew_s:+.3f} s"
