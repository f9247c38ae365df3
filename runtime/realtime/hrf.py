"""How the blood answers a stimulus: the response function, and what an event makes of it.

An event's regressor is the response summed over the event's duration. Kept as a running sum, it
costs two look-ups for each volume, however long the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

OVERSAMPLING = 50
"""Steps of the response in each TR, as nilearn takes them."""
LENGTH_S = 32.0
"""After this long a response is over."""
_ON_A_STEP = 1e-6
"""Share of a step within which an onset counts as lying on it, against rounding."""


def glover_hrf(tr_s: float, oversampling: int = OVERSAMPLING) -> NDArray[np.float64]:
    """Glover's canonical response, the difference of two gamma densities; its sum is 1.

    Glover 1999, doi:10.1006/nimg.1998.0419. Equal to nilearn's function of the same name.

    Parameters
    ----------
    tr_s : float
        Repetition time in seconds.
    oversampling : int
        Samples in each TR.

    Returns
    -------
    response : (32 s in steps of tr_s / oversampling) float64
    """
    step_s = tr_s / oversampling
    times = np.linspace(0, LENGTH_S, round(LENGTH_S / step_s)) - step_s
    response = _gamma_density(times, 6 / 0.9, 0.9) - 0.48 * _gamma_density(times, 12 / 0.9, 0.9)
    return response / response.sum()


def _gamma_density(times: NDArray[np.float64], shape: float, scale: float) -> NDArray[np.float64]:
    scaled = np.maximum(times, 0) / scale
    log_norm = math.lgamma(shape) + math.log(scale)
    with np.errstate(divide="ignore"):  # the density is 0 at 0, as the logarithm says
        return np.exp((shape - 1) * np.log(scaled) - scaled - log_norm)


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """A response function, made ready to be summed over an event.

    Examples
    --------
    >>> response = Response.glover(tr_s=1.6)
    >>> bool(response.at(5.0, onset_s=0.0, duration_s=3.0) > 0)
    True
    """

    step_s: float
    """Seconds between two samples."""
    total: NDArray[np.float64]
    """(steps + 1) sum of the response up to each sample, from 0 on."""

    @classmethod
    def glover(cls, tr_s: float) -> Response:
        """Glover's response, in steps of a fiftieth of the TR."""
        return cls.given(glover_hrf(tr_s), tr_s / OVERSAMPLING)

    @classmethod
    def given(cls, samples: NDArray[np.float64], step_s: float) -> Response:
        """A response of one's own.

        Parameters
        ----------
        samples : (steps,) float
            Response from the moment of the stimulus on. Its scale is that of the betas' reverse.
        step_s : float
            Seconds between two samples.

        Raises
        ------
        InputError
            Not one finite row of at least two samples, all zero, or a step that is not positive.
        """
        samples = np.asarray(samples, np.float64)
        if samples.ndim != 1 or samples.size < 2 or not np.isfinite(samples).all():
            raise InputError(
                "a response function must be one row of at least 2 finite samples; got shape "
                f"{samples.shape}"
            )
        if not samples.any() or not (math.isfinite(step_s) and step_s > 0):
            raise InputError(
                f"a response function must not be zero and its step in seconds positive; got a "
                f"largest sample of {np.abs(samples).max():g} and a step of {step_s}"
            )
        return cls(step_s, np.concatenate([[0.0], np.cumsum(samples)]))

    @property
    def length_s(self) -> float:
        """Seconds after which an event without duration leaves no trace."""
        return (self.total.size - 1) * self.step_s

    def at(self, time_s: float, onset_s: float, duration_s: float) -> float:
        """Regressor of an event at one moment.

        Onset and end are moved forward to the next step counted from that moment, and an event
        lasts one step at least, as nilearn has it. So an event of no duration has a finite effect.

        Parameters
        ----------
        time_s, onset_s, duration_s : float
            Seconds on one clock.
        """
        onset = math.floor((time_s - onset_s) / self.step_s + _ON_A_STEP)
        end = math.floor((time_s - onset_s - duration_s) / self.step_s + _ON_A_STEP)
        return self._until(onset) - self._until(min(end, onset - 1))

    def _until(self, step: int) -> float:
        return float(self.total[min(max(step + 1, 0), self.total.size - 1)])
