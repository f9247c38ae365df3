"""How far an answer can be trusted, from what is known without the truth.

Three signs, each from 0 to 1: how much of a trial's activity is more than the uncertainty of its
estimate; how long the decoded CLIP vector is, for an encoder that knows little draws it towards the
mean; and how probable the language model finds its own words. Their geometric mean is the
confidence: one bad sign is enough to lower it. It orders the answers of a run; it is no probability
of being right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """The signs of one answer; None for what the answer does not have."""

    signal: float
    """Share of the beta's variance over elements that is not variance of its estimate."""
    clip: float | None = None
    """Length of the CLIP vector over that of the golden one, at most 1."""
    text: float | None = None
    """Geometric mean of the probabilities of the text's tokens."""

    @property
    def value(self) -> float:
        """From 0 to 1."""
        signs = [sign for sign in (self.signal, self.clip, self.text) if sign is not None]
        return math.prod(signs) ** (1 / len(signs))

    def as_dict(self) -> dict[str, Any]:
        """As messages hold it."""
        parts = {"signal": self.signal, "clip": self.clip, "text": self.text}
        rounded = {name: round(part, 4) for name, part in parts.items() if part is not None}
        return {"value": round(self.value, 4), **rounded}


def signal_share(values: NDArray[np.float32], variance: NDArray[np.float32]) -> float:
    """How much of a pattern is more than the uncertainty of its estimate, 0 to 1.

    Parameters
    ----------
    values : (E,) float32
        A trial's activity, less its mean over trials, in any unit.
    variance : (E,) float32
        Of the estimate, in that unit squared.

    Examples
    --------
    >>> signal_share(np.float32([2, -2, 2, -2]), np.float32([1, 1, 1, 1]))
    0.75
    """
    found = float(np.mean(np.square(values), dtype=np.float64))
    noise = float(np.mean(variance, dtype=np.float64))
    return max(0.0, 1 - noise / found) if found > 0 else 0.0
