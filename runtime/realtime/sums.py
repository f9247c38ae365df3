"""What the sums over volumes give out: of the design alone, and of the elements seen through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Grams:
    """Products of the design with itself, over all volumes so far."""

    now: Matrix
    """(K, K) sum of x_t x_t'."""
    neighbours: Matrix
    """(K, K) sum of x_t x_(t-1)' + x_(t-1) x_t' over volumes that follow each other."""
    last: Matrix
    """(K,) row of the newest volume."""
    volumes: int
    pairs: int


@dataclass(frozen=True, slots=True, eq=False)
class Projected:
    """One block of elements, L of them, seen through p combinations of the design's columns."""

    elements: slice
    now: NDArray[Any]
    """(p, L) F'X'Y."""
    neighbours: NDArray[Any] | None
    """(p, L) F' times the sum of (x_(t-1) + x_(t+1)) y_t."""
    squares: NDArray[Any]
    """(L,) sum of y_t^2."""
    neighbour_squares: NDArray[Any] | None
    """(L,) twice the sum of y_t y_(t-1)."""
    last: NDArray[Any]
    """(L,) the newest volume."""
