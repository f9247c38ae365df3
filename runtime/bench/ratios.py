"""How many times as fast, and whether that can be told from noise.

Two variants that took turns give one ratio a round. Their median has a 95 % interval without any
assumption about the distribution. The same variant, entered twice, shows what ratio comes about
without any difference: a ratio that is not farther from 1 than that is not told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .summary import interval_ranks

LEAST_ROUNDS = next(n for n in range(1, 100) if interval_ranks(n, 0.5))
"""Rounds from which on a median has a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What the same variant, entered twice, differed from itself."""

    factor: float
    """At least 1: the larger end of the interval of the ratio, or the inverse of its smaller."""
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as long one variant takes as another one, which took turns with it."""

    median: float | None
    """None where it cannot be told from noise."""
    low: float
    """The interval, already widened by the noise."""
    high: float
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it; without the median where it cannot be told."""
        told = {} if self.median is None else {"ratio": round(self.median, 4)}
        interval = [round(self.low, 4), round(self.high, 4)]
        return {**told, "interval": interval, "rounds": self.rounds}

    def __str__(self) -> str:
        interval = f"[{self.low:.3f}, {self.high:.3f}]"
        if self.median is None:
            return f"within the noise {interval}"
        return f"{self.median:.3f} {interval}"


def noise_of(once: Sequence[float], again: Sequence[float]) -> Noise | None:
    """The noise of one variant that was entered twice; None for too few rounds.

    Parameters
    ----------
    once, again : sequence of float
        Seconds, by round.
    """
    found = _interval(once, again)
    if found is None:
        return None
    _, low, high = found
    return Noise(factor=max(high, 1 / low, 1.0), rounds=len(once))


def compared(slow: Sequence[float], fast: Sequence[float], noise: Noise | None) -> Ratio | None:
    """The ratio of two variants; None for too few rounds.

    Parameters
    ----------
    slow, fast : sequence of float
        Seconds, by round; the ratio is `slow / fast`.
    noise : Noise, optional
        Without it nothing is told.
    """
    found = _interval(slow, fast)
    if found is None or noise is None:
        return None
    median, low, high = found
    low, high = low / noise.factor, high * noise.factor
    told = low > 1.0 or high < 1.0
    return Ratio(median=median if told else None, low=low, high=high, rounds=len(slow))


def _interval(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float] | None:
    """Median and 95 % interval of the ratio of each round."""
    ratios = np.sort(np.asarray(slow, np.float64) / np.asarray(fast, np.float64))
    ranks = interval_ranks(len(ratios), 0.5)
    if ranks is None:
        return None
    low, high = ratios[ranks[0]], ratios[ranks[1]]
    # the middle in the logarithm, so that the ratio of the two in the other order is the inverse
    return math.exp(float(np.median(np.log(ratios)))), float(low), float(high)
