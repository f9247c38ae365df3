"""Sums over volumes from which every least-squares fit of a run follows, at a constant cost.

For rows x_t (K,) of the design and volumes y_t (E,) these are

    X'X = sum x_t x_t'    X'Y = sum x_t y_t'    Y'Y = sum y_t^2

and, where volumes are correlated in time, the same between neighbours. X'Y is large, and adding to
all of it at each volume would cost its size twice in memory traffic. So the last volumes are kept
in a ring, the elements are cut into blocks, and at each volume one block in `SPREAD` takes in what
it has not seen, by one product of matrices. The ring serves two more ends: a row that becomes known
late, within `hold` volumes, is simply changed before it is summed; and a neighbour in time is there
when it is needed.

Cost of a volume: writing E elements, and the product for E / SPREAD of them, whatever the length of
the run. Memory: (K + hold + SPREAD + 5) x E elements, and (2K + hold + SPREAD + 6) x E with
neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .column_sums import ColumnSums, touched
from .sums import Grams, Matrix, Projected

SPREAD = 8
"""Volumes over which the work on all blocks is spread."""
BLOCK = 4096
"""Elements of a block, so that it and its share of the ring stay in a core's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Volumes of the ring that a block has not summed."""

    rows: Matrix
    """(R, K) in the ring's order; 0 where a volume is not meant or missing."""
    beside: Matrix
    """(R, K) for each of them the sum of its neighbours' rows."""
    there: NDArray[np.int64]
    """Ring places of those that are there."""
    paired: NDArray[np.int64]
    """Ring places of those whose predecessor is there too."""

    def squares(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Sums of squares, and twice those of products of neighbours, of a block's ring (R, L)."""
        own, after, before = values[self.there], values[self.paired], values[self.paired - 1]
        return np.einsum("tl,tl->l", own, own), 2 * np.einsum("tl,tl->l", after, before)


class CrossProducts:
    """Running sums of a design's products with itself and with the volumes.

    Parameters
    ----------
    columns, elements : int
        K and E.
    hold : int
        The newest volumes whose row may still change, and in whose range a late volume still
        counts.
    neighbours : bool
        Keep the products between neighbouring volumes too.
    dtype : float32 or float64
        Of the sums over elements; those of the design alone are always float64.
    """

    def __init__(
        self,
        columns: int,
        elements: int,
        *,
        hold: int,
        neighbours: bool = False,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.columns, self.elements, self.hold = columns, elements, hold
        self.newest = -1
        """Number of the newest volume."""
        self._ring = hold + SPREAD + 3
        blocks = -(-elements // BLOCK)
        self._rows = np.zeros((self._ring, columns))
        self._present = np.zeros(self._ring, bool)
        self._values = touched(np.empty((blocks, self._ring, BLOCK), dtype))
        self._baseline: NDArray[Any] | None = None
        self._sums = ColumnSums(blocks, columns, BLOCK, dtype)
        self._neighbour_sums = ColumnSums(blocks, columns, BLOCK, dtype) if neighbours else None
        self._squares = np.zeros((blocks, BLOCK), dtype)
        self._neighbour_squares = np.zeros((blocks, BLOCK), dtype) if neighbours else None
        self._summed = np.zeros(blocks, np.int64)  # number of the first volume not summed yet
        self._settled = 0  # the same for the design's own products
        self._gram = np.zeros((columns, columns))
        self._neighbour_gram = np.zeros((columns, columns))
        self._volumes = self._pairs = 0

    @property
    def memory_bytes(self) -> int:
        """What the sums and the ring hold."""
        sums = (self._sums, self._neighbour_sums, self._squares, self._neighbour_squares)
        held = (*sums, self._values, self._baseline)
        return sum(array.nbytes for array in held if array is not None)

    @property
    def open_frames(self) -> range:
        """Numbers of the volumes that may still be put or changed, the newest last."""
        return range(max(self.newest - self.hold + 1, 0), self.newest + 1)

    def has(self, frame: int) -> bool:
        """Whether a volume of the open range is there."""
        return frame in self.open_frames and bool(self._present[frame % self._ring])

    def row(self, frame: int) -> Matrix:
        """(K,) row of a volume of the open range, to be changed in place where it `has` one."""
        if frame not in self.open_frames:
            raise IndexError(f"volume {frame} is not among the open ones, {self.open_frames}")
        return self._rows[frame % self._ring]

    def put(self, frame: int, row: Matrix, values: NDArray[Any]) -> None:
        """Take in a volume, or replace one of the open range.

        Parameters
        ----------
        frame : int
            Number of the volume, beyond the newest or in `open_frames`.
        row : (K,) float64
        values : (E,) float
            Finite; the first volume's are subtracted from all, so that the design needs a constant.
        """
        if frame > self.newest:
            self._advance(frame)
        elif frame not in self.open_frames:
            raise IndexError(f"volume {frame} is not among the open ones, {self.open_frames}")
        if self._baseline is None:
            self._baseline = np.array(values, self._values.dtype)
        at = frame % self._ring
        whole = self.elements // BLOCK
        cut = whole * BLOCK
        np.subtract(
            values[:cut].reshape(whole, BLOCK),
            self._baseline[:cut].reshape(whole, BLOCK),
            out=self._values[:whole, at],
            casting="same_kind",
        )
        if cut < self.elements:
            rest = self.elements - cut
            self._values[whole, at, :rest] = values[cut:] - self._baseline[cut:]
        self._rows[at] = row
        self._present[at] = True

    def drop(self, frame: int) -> None:
        """Give a volume of the open range no weight."""
        if frame in self.open_frames:
            self._present[frame % self._ring] = False
            self._rows[frame % self._ring] = 0

    def clear_column(self, column: int) -> None:
        """Forget a column, to use it for another regressor that was 0 until now."""
        self._rows[:, column] = 0
        if self._gram[column, column]:  # else nothing of it was summed, nor is its memory taken
            self._sums.clear(column)
            if self._neighbour_sums is not None:
                self._neighbour_sums.clear(column)
        for gram in (self._gram, self._neighbour_gram):
            gram[column] = gram[:, column] = 0

    def widen(self, columns: int) -> None:
        """Add columns that were 0 until now."""
        self._rows = np.pad(self._rows, ((0, 0), (0, columns)))
        self._sums.widen(columns)
        if self._neighbour_sums is not None:
            self._neighbour_sums.widen(columns)
        self._gram = np.pad(self._gram, (0, columns))
        self._neighbour_gram = np.pad(self._neighbour_gram, (0, columns))
        self.columns += columns

    def grams(self) -> Grams:
        """Products of the design with itself, up to the newest volume."""
        now, neighbours, volumes, pairs = self._own_products(self.newest + 1)
        last = self._last_present()
        return Grams(
            self._gram + now,
            self._neighbour_gram + neighbours,
            np.zeros(self.columns) if last is None else self._rows[last].copy(),
            self._volumes + volumes,
            self._pairs + pairs,
        )

    def project(self, combinations: Matrix) -> Iterator[Projected]:
        """All elements, block by block, seen through combinations F (K, p) of the columns."""
        dtype = self._values.dtype
        turned = np.ascontiguousarray(combinations.T, dtype)  # (p, K)
        last = self._last_present()
        seen: dict[int, tuple[_Waiting, NDArray[Any], NDArray[Any]]] = {}
        for block, values in enumerate(self._values):
            first = int(self._summed[block])
            if first not in seen:
                waiting = self._waiting(first, self.newest + 1)
                rows = (waiting.rows @ combinations).T.astype(dtype)  # (p, R)
                seen[first] = waiting, rows, (waiting.beside @ combinations).T.astype(dtype)
            waiting, rows, beside = seen[first]
            squares, neighbour_squares = waiting.squares(values)
            length = min(BLOCK, self.elements - block * BLOCK)
            neighbours = None
            if self._neighbour_sums is not None and self._neighbour_squares is not None:
                lagged = self._neighbour_sums.combined(block, turned)
                neighbours = (lagged + beside @ values)[:, :length]
                neighbour_squares += self._neighbour_squares[block]
            yield Projected(
                slice(block * BLOCK, block * BLOCK + length),
                (self._sums.combined(block, turned) + rows @ values)[:, :length],
                neighbours,
                (self._squares[block] + squares)[:length],
                None if neighbours is None else neighbour_squares[:length],
                np.zeros(length, dtype) if last is None else values[last, :length],
            )

    def _last_present(self) -> int | None:
        """Ring place of the newest volume that is there."""
        for frame in reversed(self.open_frames):
            if self._present[frame % self._ring]:
                return frame % self._ring
        return None

    def _advance(self, frame: int) -> None:
        """Make room for a volume and all those missing before it."""
        if self.newest < 0 or frame - self.newest >= self._ring:
            # the first volume, or one after a gap longer than the ring: all before it is summed
            self._settle(self.newest + 1)
            for offset in range(SPREAD):
                self._sum_up(range(offset, len(self._values), SPREAD), self.newest + 1)
            self._present[:] = False
            self._rows[:] = 0
            self.newest = frame
            self._settled = self.open_frames.start
            self._summed[:] = self.open_frames.start
            return
        for number in range(self.newest + 1, frame + 1):
            self.newest = number
            self._present[number % self._ring] = False
            self._rows[number % self._ring] = 0
            limit = self.open_frames.start
            self._settle(limit)
            # a volume's sums hold its neighbours' rows: the next one must be beyond change as well
            self._sum_up(range(number % SPREAD, len(self._values), SPREAD), limit - 1)

    def _settle(self, limit: int) -> None:
        """Add the design's own products of volumes before a limit, which can change no more."""
        now, neighbours, volumes, pairs = self._own_products(limit)
        self._gram += now
        self._neighbour_gram += neighbours
        self._volumes += volumes
        self._pairs += pairs
        self._settled = max(limit, self._settled)

    def _own_products(self, limit: int) -> tuple[Matrix, Matrix, int, int]:
        waiting = self._waiting(self._settled, limit)
        lagged = self._rows[waiting.paired].T @ self._rows[waiting.paired - 1]
        now = waiting.rows.T @ waiting.rows
        return now, lagged + lagged.T, len(waiting.there), len(waiting.paired)

    def _waiting(self, first: int, limit: int) -> _Waiting:
        """Volumes from first up to a limit, all of them and the one before in the ring."""
        frames = np.arange(first, limit)
        there = frames[self._present[frames % self._ring]]
        at = there % self._ring
        rows, beside = np.zeros_like(self._rows), np.zeros_like(self._rows)
        rows[at] = self._rows[at]
        beside[at] = self._rows[at - 1]  # place -1 is the ring's last
        followed = there[there < self.newest] % self._ring  # the newest is followed by the oldest
        beside[followed] += self._rows[(followed + 1) % self._ring]
        return _Waiting(rows, beside, at, at[self._present[at - 1]])

    def _sum_up(self, blocks: range, limit: int) -> None:
        """Add to the sums of blocks, which have all seen the same, the volumes before a limit."""
        first = int(self._summed[blocks.start]) if blocks else limit
        if limit <= first:
            return
        dtype = self._values.dtype
        waiting = self._waiting(first, limit)
        rows, beside = waiting.rows.T.astype(dtype), waiting.beside.T.astype(dtype)
        for block in blocks:
            values = self._values[block]
            squares, neighbour_squares = waiting.squares(values)
            self._sums.add(block, rows, values)
            self._squares[block] += squares
            if self._neighbour_sums is not None and self._neighbour_squares is not None:
                self._neighbour_sums.add(block, beside, values)
                self._neighbour_squares[block] += neighbour_squares
        self._summed[blocks.start :: blocks.step] = limit
