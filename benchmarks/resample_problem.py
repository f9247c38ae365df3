"""The resampling that the benchmarks time: native grids of NSD onto the grid of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scanside.kernels import Geometry, resize_matrix

SHAPES = {
    "subj01": (83, 104, 81), "subj02": (84, 106, 82), "subj03": (82, 106, 81),
    "subj04": (80, 99, 85), "subj05": (78, 97, 79), "subj06": (83, 113, 85),
    "subj07": (81, 95, 78), "subj08": (78, 103, 80),
}  # fmt: skip
"""Native grids of NSD's subjects."""
GRID, CUBE, CANDIDATES = (83, 104, 81), 14, 288
SLOPE, INTER = 1 / 300, 0.25
MAPPINGS = ("resize", "affine")

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is to be computed, whatever the volumes hold."""

    shape: Shape
    """X Y Z of a volume, which is stored in Fortran order."""
    geometry: Geometry
    matrix: NDArray[np.float64]
    """Model grid voxel to volume voxel."""
    mean: NDArray[np.float32]
    inv_std: NDArray[np.float32]

    @property
    def points(self) -> NDArray[np.float64]:
        """(N, C, 3) voxel of the volume at each element."""
        return self.geometry.voxels @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    @property
    def outside(self) -> NDArray[np.bool_]:
        """(N, C) whether the element lies more than half a voxel outside the volume."""
        points = self.points
        return ((points < -0.5) | (points > np.array(self.shape) - 0.5)).any(axis=-1)

    @property
    def masked(self) -> NDArray[np.float32]:
        """inv_std with 0 in the padding."""
        return (self.inv_std * self.geometry.in_grid).astype(np.float32)


def make_problem(shape: Shape, mapping: str, cubes: int) -> Problem:
    """The resize or the affine of a volume; the cubes in the middle if not all are wanted."""
    every = Geometry(grid=GRID, cube=CUBE, active=np.arange(CANDIDATES))
    middle = (np.array(GRID) - 1) / 2
    distance = np.linalg.norm(every.corners + (CUBE - 1) / 2 - middle, axis=1)
    nearest = np.sort(np.argsort(distance, kind="stable")[:cubes])
    geometry = Geometry(grid=GRID, cube=CUBE, active=nearest)
    rng = np.random.default_rng(0)
    return Problem(
        shape=shape,
        geometry=geometry,
        matrix=resize_matrix(shape, GRID) if mapping == "resize" else turned(shape),
        mean=rng.normal(size=geometry.shape).astype(np.float32),
        inv_std=rng.uniform(0.2, 2, geometry.shape).astype(np.float32),
    )


def turned(shape: Sequence[int]) -> NDArray[np.float64]:
    """The resize, turned by a few degrees about each axis and moved, as heads lie in a scanner."""
    matrix = resize_matrix(shape, GRID)
    for axis, degrees in enumerate((4.0, -3.0, 6.0)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = (n for n in range(3) if n != axis)
        turn = np.eye(4)
        turn[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        matrix = matrix @ turn
    middle = (np.array(GRID) - 1) / 2
    matrix[:3, 3] = (np.array(shape) - 1) / 2 - matrix[:3, :3] @ middle + (1.3, -0.8, 0.6)
    return matrix


def random_volumes(batch: int, shape: Shape, dtype: str) -> NDArray[np.generic]:
    """(B, Z, Y, X) contiguous: Fortran-ordered volumes as the transposed view shows them."""
    values = np.random.default_rng(1).normal(size=(batch, *shape[::-1])) * 900
    return values.astype(dtype)
