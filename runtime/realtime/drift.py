"""Slow drift of the signal: cosines whose number follows from the planned length of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A constant, and cosines slower than a cut-off; equal to nilearn's for a whole run.

    The set is fixed before the run: what is known of its length must not change with every volume.
    A run that goes on longer than planned continues the same cosines.
    """

    volumes: int
    """Planned length of the run, at least 2."""
    tr_s: float
    high_pass_hz: float = 0.01
    """Slower signals than this are drift."""

    def __post_init__(self) -> None:
        if self.volumes < 2:
            raise InputError(f"a run must be planned for at least 2 volumes; got {self.volumes}")
        if not (math.isfinite(self.tr_s) and self.tr_s > 0):
            raise InputError(f"the TR must be a positive number of seconds; got {self.tr_s}")
        if not 0 <= self.high_pass_hz * self.tr_s < 0.5:
            raise InputError(
                f"the high-pass must lie between 0 and {0.5 / self.tr_s:g} Hz, half the sampling "
                f"rate; got {self.high_pass_hz}"
            )

    @property
    def columns(self) -> int:
        """The constant and the cosines."""
        cosines = math.floor(2 * self.volumes * self.high_pass_hz * self.tr_s)
        return 1 + min(self.volumes - 1, cosines)

    def row(self, frame: int) -> NDArray[np.float64]:
        """The drift (columns,) at one volume: the constant, then the cosines from slow to fast."""
        order = np.arange(1, self.columns)
        wave = np.cos(np.pi / self.volumes * (frame + 0.5) * order)
        return np.concatenate([[1.0], math.sqrt(2 / self.volumes) * wave])
