"""Sums of volumes weighted by the columns of a design, X'Y, which can take more columns in mid-run.

Columns are added as another slab, so that nothing is copied. What is there from the beginning is
written to once when it is made: the system gives out memory when it is first touched, and a volume
that found all of it untouched would be late.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Slab = NDArray[Any]


class ColumnSums:
    """Sums over E elements, in blocks of L, for K columns.

    Parameters
    ----------
    blocks, columns, length : int
        Blocks, K and L.
    dtype : float32 or float64
    """

    def __init__(self, blocks: int, columns: int, length: int, dtype: DTypeLike) -> None:
        self._slabs = [touched(np.empty((blocks, columns, length), dtype))]

    @property
    def nbytes(self) -> int:
        """What they hold."""
        return sum(slab.nbytes for slab in self._slabs)

    def widen(self, columns: int) -> None:
        """Add columns that are 0; their memory is taken when they are first summed."""
        blocks, _, length = self._slabs[0].shape
        self._slabs.append(np.zeros((blocks, columns, length), self._slabs[0].dtype))

    def clear(self, column: int) -> None:
        """Make a column 0."""
        for columns, slab in self._by_columns():
            if columns.start <= column < columns.stop:
                slab[:, column - columns.start] = 0

    def add(self, block: int, rows: NDArray[Any], values: NDArray[Any]) -> None:
        """Add rows (K, R) times values (R, L) to a block."""
        for columns, slab in self._by_columns():
            slab[block] += rows[columns] @ values

    def combined(self, block: int, weights: NDArray[Any]) -> NDArray[Any]:
        """(p, L) combinations, weights (p, K) times a block's sums."""
        parts = [weights[:, columns] @ slab[block] for columns, slab in self._by_columns()]
        return np.add.reduce(parts)

    def _by_columns(self) -> Iterator[tuple[slice, Slab]]:
        first = 0
        for slab in self._slabs:
            yield slice(first, first + slab.shape[1]), slab
            first += slab.shape[1]


def touched(array: NDArray[Any]) -> NDArray[Any]:
    """An array of zeros whose memory is there."""
    array.fill(0)
    return array
