"""How a grid lies in a volume, prepared once for the native code: axis order, and resize tables.

Whatever depends on the grid, the volume's shape and the matrix alone is made here and kept, so that
a run of volumes pays for it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .resample_reference import REACH

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """A mapping without rotation, axis by axis: three tables in a row, one for each grid axis."""

    low: NDArray[np.int32]
    """Lower neighbour in the volume of each grid voxel."""
    weight: NDArray[np.float32]
    """Weight of the upper neighbour."""
    outside: NDArray[np.bool_]
    """More than half a voxel outside the volume."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A grid in a volume."""

    axes: Shape
    """Order of the volume's axes in which the native code takes them."""
    matrix: NDArray[np.float64]
    """(3, 4) grid voxel to volume voxel, its rows in that order."""
    tables: Tables | None
    """None where the mapping turns or shears."""


@lru_cache(maxsize=64)
def place(grid: Shape, shape: Shape, fastest: int, matrix: bytes) -> Place:
    """Place a grid in a volume.

    Parameters
    ----------
    grid, shape : (3,) int
        Of the grid and of the volume, in voxels.
    fastest : int
        Axis along which the volume is contiguous, if any is.
    matrix : bytes
        Of a (4, 4) float64 matrix, grid voxel to volume voxel.
    """
    rows = np.frombuffer(matrix, np.float64).reshape(4, 4)[:3]
    source_axes = _axis_by_axis(rows)
    if source_axes is None:
        a, b = (axis for axis in range(3) if axis != fastest)
        axes = a, b, fastest
        return Place(axes, np.ascontiguousarray(rows[list(axes)]), None)
    x, y, z = source_axes
    tables = [
        _table(rows[source, axis], rows[source, 3], grid[axis], shape[source])
        for axis, source in enumerate(source_axes)
    ]
    low, weight, outside = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    return Place((z, y, x), np.ascontiguousarray(rows[[z, y, x]]), Tables(low, weight, outside))


def _axis_by_axis(rows: NDArray[np.float64]) -> Shape | None:
    """Volume axis that belongs to each grid axis; None if one of either depends on several."""
    used = rows[:, :3] != 0
    if (used.sum(axis=0) > 1).any() or (used.sum(axis=1) > 1).any():
        return None
    # an axis that is collapsed to a point belongs to any grid axis that nothing follows
    collapsed = [axis for axis in range(3) if not used[axis].any()]
    x, y, z = (int(col.argmax()) if col.any() else collapsed.pop() for col in used.T)
    return x, y, z


def _table(
    scale: float, shift: float, grid: int, size: int
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.bool_]]:
    point = scale * np.arange(grid) + shift
    outside = (point < -REACH) | (point > size - 1 + REACH)
    point = np.clip(point, 0, size - 1)
    low = np.minimum(point.astype(np.int32), max(size - 2, 0))
    return low, (point - low).astype(np.float32), outside
