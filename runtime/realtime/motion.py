"""How much a subject moves, and which volumes that spoils."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RADIUS_MM = 50.0
"""Of the sphere on which a turn is measured, as Power et al. take it."""


def framewise_displacement(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Millimetres that a head moved between two volumes.

    The sum of absolute differences of the six parameters, turns as arcs on a sphere of 50 mm (Power
    et al. 2012, doi:10.1016/j.neuroimage.2011.10.018).

    Parameters
    ----------
    before, after : (6,) float64
        Shifts in millimetres, angles in radians.

    Examples
    --------
    >>> framewise_displacement(np.zeros(6), np.array([0.1, 0, -0.2, 0, 0.01, 0])).__round__(3)
    0.8
    """
    change = np.abs(after - before)
    return float(change[:3].sum() + RADIUS_MM * change[3:].sum())


def dvars_percent(before: NDArray[Any], after: NDArray[Any], brightness: float) -> float:
    """Root mean square of the change between two volumes, in percent of the brain's brightness.

    Parameters
    ----------
    before, after : (V,) float
        The same places of the brain, aligned: tokens will do.
    brightness : float
        Mean over the brain, not 0.
    """
    change = np.asarray(after, np.float32) - np.asarray(before, np.float32)
    return float(100 * np.sqrt(np.mean(np.square(change), dtype=np.float64)) / abs(brightness))


@dataclass(frozen=True, slots=True)
class Movement:
    """A volume beside the one before it."""

    displacement_mm: float
    """0 for the first volume."""
    dvars: float
    """Percent; 0 for the first volume."""
    spike: bool
    """The volume is spoilt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeLimits:
    """From where on a volume is a spike."""

    displacement_mm: float = 0.5
    """Framewise displacement."""
    dvars_times: float = 2.0
    """DVARS, in medians of the volumes before it."""
    window: int = 64
    """Volumes of that median."""
    least: int = 10
    """Volumes before which DVARS says nothing."""


class MotionMonitor:
    """Watches motion over a run, at a constant cost.

    Parameters
    ----------
    limits : SpikeLimits
    """

    def __init__(self, limits: SpikeLimits | None = None) -> None:
        self.limits = limits or SpikeLimits()
        self._before: tuple[NDArray[np.float64], NDArray[np.float32]] | None = None
        self._brightness = 0.0
        self._dvars: deque[float] = deque(maxlen=self.limits.window)

    def see(self, parameters: NDArray[np.float64], values: NDArray[Any]) -> Movement:
        """Compare a volume with the one seen before it, however long ago.

        Parameters
        ----------
        parameters : (6,) float64
            Of its alignment.
        values : (V,) float
            Aligned brightness of the brain.
        """
        values = np.array(values, np.float32)  # the caller may use its array again
        if self._before is None:
            self._before = parameters, values
            self._brightness = float(np.mean(np.abs(values), dtype=np.float64)) or 1.0
            return Movement(0.0, 0.0, False)
        displacement = framewise_displacement(self._before[0], parameters)
        dvars = dvars_percent(self._before[1], values, self._brightness)
        jump = len(self._dvars) >= self.limits.least and (
            dvars > self.limits.dvars_times * statistics.median(self._dvars)
        )
        self._before = parameters, values
        self._dvars.append(dvars)
        return Movement(displacement, dvars, displacement > self.limits.displacement_mm or jump)
