"""Many times in a few numbers, and no number that so many times cannot show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_RUNS = {"p50": 3, "p95": 20, "p99": 100, "p99.9": 1000}
"""Runs from which on a percentile is told: one run in twenty, in a hundred lies beyond it."""
BINS = 20
_ERROR = 0.05
"""Share of all intervals that miss the true value."""


def summarise_ms(seconds: Sequence[float]) -> dict[str, Any]:
    """Percentiles, extremes and histogram of times, in milliseconds.

    Parameters
    ----------
    seconds : sequence of float
        At least one.

    Returns
    -------
    summary : dict
        runs, min, max, the percentiles that there are enough runs for, `needs` with the number of
        runs that each of the others needs, `interval` with the 95 % interval of each percentile
        that has one, and `histogram`.
    """
    ms = np.sort(np.asarray(seconds, np.float64)) * 1e3
    runs = len(ms)
    out: dict[str, Any] = {"runs": runs, "min": _round(ms[0]), "max": _round(ms[-1])}
    intervals: dict[str, list[float]] = {}
    for name, least in LEAST_RUNS.items():
        if runs < least:
            continue
        percent = float(name[1:])
        out[name] = _round(np.percentile(ms, percent))
        ranks = interval_ranks(runs, percent / 100)
        if ranks is not None:
            intervals[name] = [_round(ms[rank]) for rank in ranks]
    if intervals:
        out["interval"] = intervals
    needs = {name: least for name, least in LEAST_RUNS.items() if runs < least}
    if needs:
        out["needs"] = needs
    out["histogram"] = histogram(ms)
    return out


def histogram(ms: NDArray[np.float64]) -> dict[str, Any]:
    """Counts in bins of equal ratio from the smallest to the largest time.

    Returns
    -------
    histogram : dict
        from, to (ms) and counts; one bin where all times are the same.
    """
    low, high = float(ms.min()), float(ms.max())
    if not 0 < low < high:
        return {"from": _round(low), "to": _round(high), "counts": [len(ms)]}
    edges = np.geomspace(low, high, BINS + 1)
    edges[0], edges[-1] = low, high  # rounding in the logarithm must lose no run
    counts, _ = np.histogram(ms, edges)
    return {"from": _round(low), "to": _round(high), "counts": counts.tolist()}


def interval_ranks(runs: int, share: float) -> tuple[int, int] | None:
    """Ranks, from 0, of the sorted values between which a quantile lies in 95 % of all cases.

    No assumption about the distribution: how many of `runs` values lie below the quantile is
    binomial (https://en.wikipedia.org/wiki/Order_statistic#Probabilistic_analysis). None where
    there are too few runs for any interval.
    """
    below = _binomial_cumulated(runs, share)
    low = int(np.searchsorted(below, _ERROR / 2, side="right")) - 1
    high = int(np.searchsorted(below, 1 - _ERROR / 2, side="left"))
    if low < 0 or high >= runs:
        return None
    return low, high


def _binomial_cumulated(runs: int, share: float) -> NDArray[np.float64]:
    """(runs + 1,) chance of at most k of so many."""
    k = np.arange(runs + 1)
    logs = np.array([math.lgamma(n + 1) for n in range(runs + 1)])
    choose = logs[runs] - logs - logs[::-1]
    chances = np.exp(choose + k * math.log(share) + (runs - k) * math.log1p(-share))
    return np.minimum(np.cumsum(chances), 1.0)


def _round(value: Any) -> float:
    return round(float(value), 3)
