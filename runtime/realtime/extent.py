"""How much of a volume there should be: the measure against which short volumes show.

A scan that is broken off leaves a legal file with fewer slices, or with slices that were never
filled. Neither breaks a rule of the format: only the run's other volumes can give it away.
"""

from __future__ import annotations

from dataclasses import dataclass

from .frame import Frame
from .source import FaultKind

_TRUSTED_AFTER = 2
"""Frames that must agree before one with more slices is the odd one out, rather than they."""
_FILLED = 0.01
"""Share of voxels that must not be 0 for a slice of the measure to count as filled."""


@dataclass(slots=True)
class Extent:
    """The shape of the run's volumes, and how far they are filled."""

    shape: tuple[int, int, int]
    filled: int
    """Slices up to the last one with more than background in it."""
    frames: int = 1
    """How many have agreed."""

    @classmethod
    def of(cls, frame: Frame) -> Extent:
        """Take a frame as the measure."""
        x, y, z = frame.data.shape
        filled = z
        while filled and (frame.data[:, :, filled - 1] != 0).mean() < _FILLED:
            filled -= 1
        return cls((x, y, z), filled)

    def outgrown_by(self, frame: Frame) -> bool:
        """Whether the measure itself was short: an early frame has more slices than it."""
        x, y, z = frame.data.shape
        return (x, y) == self.shape[:2] and z > self.shape[2] and self.frames <= _TRUSTED_AFTER

    def refuses(self, frame: Frame) -> tuple[FaultKind, str] | None:
        """Why a frame is not one of the run's, None if it is."""
        shape = frame.data.shape
        if shape[:2] != self.shape[:2] or shape[2] > self.shape[2]:
            return FaultKind.CHANGED, f"{shape} voxels in a run of {self.shape}"
        if shape[2] < self.shape[2]:
            return FaultKind.SHORT, f"{shape[2]} of {self.shape[2]} slices"
        # a slice that holds signal in the measure is never all zero in a whole volume
        if self.filled and not frame.data[:, :, self.filled - 1].any():
            return FaultKind.SHORT, f"nothing in slice {self.filled} of {self.shape[2]}"
        self.frames += 1
        return None
