"""Which of several measured ways to compile a checkpoint a bundle is made of.

An option is a precision, a quantization and a number of denoising steps. It is fast enough if 95 of
100 volumes are answered within the target, and good enough if its mean score reaches the least one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to compile a checkpoint, and to paint with it."""

    precision: str
    quantize: str
    steps: int

    def __str__(self) -> str:
        plural = "" if self.steps == 1 else "s"
        return f"{self.precision}, {self.quantize}, {self.steps} step{plural}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one option does on held-out trials, on one machine."""

    option: Option
    trial_scores: NDArray[np.float64]
    """(B,) from 0 to 1; the same trials for all options."""
    scores: Mapping[str, float]
    """Means of what a trial's score is the mean of."""
    latency_ms: Mapping[str, Any]
    """From a volume's file to the last answer, as `bench.summarise_ms` sums it up, with p95."""
    memory_mib: float
    """Most that a process needed."""
    size_mib: float
    """Of the bundle on disk."""

    @property
    def score(self) -> float:
        """Mean over trials."""
        return float(self.trial_scores.mean())

    def as_dict(self) -> dict[str, Any]:
        """A row of the table in the manifest."""
        latency = {key: self.latency_ms[key] for key in ("runs", "p50", "p95", "max")}
        return {
            "precision": self.option.precision,
            "quantize": self.option.quantize,
            "steps": self.option.steps,
            "score": round(self.score, 4),
            **{name: round(value, 4) for name, value in self.scores.items()},
            "latency_ms": latency,
            "memory_mib": round(self.memory_mib, 1),
            "size_mib": round(self.size_mib, 1),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a caller asks for; at least one of the two."""

    target_latency_ms: float | None = None
    """Within which 95 of 100 volumes are answered, above 0."""
    min_score: float | None = None
    """Mean score, above 0 and at most 1."""

    def __post_init__(self) -> None:
        target, least = self.target_latency_ms, self.min_score
        if target is not None and not 0 < target < math.inf:
            raise InputError(f"'target_latency_ms' must be above 0 and finite; got {target:g}")
        if least is not None and not 0 < least <= 1:
            raise InputError(f"'min_score' must be above 0 and at most 1; got {least:g}")

    def missed_by(self, row: Measured) -> float:
        """Share of a bound by which an option misses it, the larger of two; 0 if it meets both."""
        missed = [0.0]
        if self.target_latency_ms is not None:
            missed.append(row.latency_ms["p95"] / self.target_latency_ms - 1)
        if self.min_score is not None:
            missed.append(1 - row.score / self.min_score)
        return max(missed)

    def __str__(self) -> str:
        told: list[str] = []
        if self.target_latency_ms is not None:
            told.append(f"answers 95 of 100 volumes within {self.target_latency_ms:g} ms")
        if self.min_score is not None:
            told.append(f"scores at least {self.min_score:g}")
        return " and ".join(told)


def front(rows: Sequence[Measured]) -> list[Measured]:
    """The options that no other one beats in both score and median latency, fastest first."""
    best, kept = -math.inf, list[Measured]()
    for row in sorted(rows, key=lambda r: (r.latency_ms["p50"], -r.score)):
        if row.score > best:
            best = row.score
            kept.append(row)
    return kept


def choose(rows: Sequence[Measured], bounds: Bounds) -> Measured:
    """The option to take.

    With a target latency it is the fastest on the front whose score cannot be told from the best
    one's, with only a least score the fastest that reaches it.

    Raises
    ------
    InputError
        No option meets the bounds; the message names the nearest.
    """
    enough = [row for row in rows if bounds.missed_by(row) == 0]
    if not enough:
        near = min(rows, key=bounds.missed_by)
        raise InputError(
            f"none of {len(rows)} options {bounds}; the nearest, {near.option}, takes "
            f"{near.latency_ms['p95']:.1f} ms (95th percentile) and scores {near.score:.3f}"
        )
    candidates = front(enough)
    if bounds.target_latency_ms is None:
        return candidates[0]
    best = candidates[-1]
    return next(row for row in candidates if _as_good(row, best))


def _as_good(row: Measured, best: Measured) -> bool:
    """Whether what the best is ahead by is within one standard error of it, over the same trials.

    Breiman's rule for choosing among models that differ by less than can be known.
    """
    ahead = best.trial_scores - row.trial_scores
    return float(ahead.mean()) <= float(ahead.std(ddof=1)) / math.sqrt(len(ahead))
