"""Log-probabilities of the tokens of a text, worked out for several at a time.

A softmax in four steps of NumPy is a noticeable part of a small language model's token. So logits
are put aside, and one pass does for all of them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

_NUMBERS = 1 << 13
"""Logits that are put aside at most: they stay in the processor's nearest cache. A vocabulary that
is larger has its pass at every token."""


class LogProbs:
    """Natural log-probability of each token that was chosen, in their order.

    Parameters
    ----------
    vocabulary_size : int
    """

    def __init__(self, vocabulary_size: int) -> None:
        rows = max(1, _NUMBERS // vocabulary_size)
        self._logits = np.empty((rows, vocabulary_size), np.float32)
        self._tokens: list[int] = []
        """Those whose logits are put aside."""
        self._known: list[float] = []

    def add(self, logits: NDArray[np.float32], likeliest: int, token: int) -> None:
        """Take in a token.

        Parameters
        ----------
        logits : (vocabulary,) float32
            What it was chosen from; they may change afterwards.
        likeliest : int
            Index of the largest of them, or of a NaN if there is one.
        token : int
            The one that was chosen.

        Raises
        ------
        InputError
            The logits are not finite.
        """
        # no other one can be NaN or plus infinity
        if not math.isfinite(logits[likeliest]):
            raise _not_finite()
        self._logits[len(self._tokens)] = logits
        self._tokens.append(token)
        if len(self._tokens) == len(self._logits):
            self._work_out()

    @property
    def values(self) -> list[float]:
        """One for each token."""
        if self._tokens:
            self._work_out()
        return self._known

    def _work_out(self) -> None:
        count = len(self._tokens)
        logits = self._logits[:count]
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(count), self._tokens]
        found = chosen - np.log(np.exp(logits, out=logits).sum(axis=1))
        if not np.isfinite(found).all():
            raise _not_finite()
        self._tokens = []
        self._known += found.tolist()


def _not_finite() -> InputError:
    return InputError(
        "the language model's answer to this volume is not finite; check the volume's units"
    )
