"""The same tokens as a good user makes them with torch, and with SciPy.

Each rival is prepared once for its geometry, as ours is; a call does only what each volume needs.
Volumes are Fortran-ordered, so both work on the transposed view, which is contiguous and no copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from scanside.kernels import Geometry


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is to be computed."""

    volume: NDArray[Any]
    """(X, Y, Z) int16 or float32, Fortran order."""
    geometry: Geometry
    """Cubes padded at the back."""
    matrix: NDArray[np.float64]
    slope: float
    inter: float
    mean: NDArray[np.float32]
    inv_std: NDArray[np.float32]

    @property
    def active(self) -> tuple[NDArray[np.int64], ...]:
        """Place of each active cube along the three axes of cubes."""
        return np.unravel_index(self.geometry.active, self.geometry.cube_grid)

    @property
    def points(self) -> NDArray[np.float64]:
        """(N, C, 3) voxel of the volume at each element."""
        return self.geometry.voxels @ self.matrix[:3, :3].T + self.matrix[:3, 3]


class TorchResize:
    """`interpolate`, pad, cut into cubes and gather in one copy, normalise in place."""

    def __init__(self, problem: Problem) -> None:
        self._problem, geometry = problem, problem.geometry
        self._size = geometry.grid[::-1]
        self._pad = [
            p
            for n, size in zip(geometry.cube_grid, geometry.grid, strict=True)
            for p in (0, n * geometry.cube - size)
        ]
        self._active = tuple(torch.from_numpy(a) for a in problem.active)
        self._mean = torch.from_numpy(problem.mean)
        self._inv_std = torch.from_numpy(problem.inv_std * geometry.in_grid)

    def __call__(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        problem, r = self._problem, self._problem.geometry.cube
        real = torch.from_numpy(volume.T).float().mul(problem.slope).add_(problem.inter)
        grid = F.interpolate(real[None, None], self._size, mode="trilinear")[0, 0]
        padded = F.pad(grid, self._pad)
        z, y, x = (n // r for n in padded.shape)
        cubes = padded.reshape(z, r, y, r, x, r).permute(4, 2, 0, 5, 3, 1)
        tokens = cubes[self._active].reshape(self._mean.shape)
        return tokens.sub_(self._mean).mul_(self._inv_std).numpy()


class TorchAffine:
    """`grid_sample` at the points of the active cubes only, which also cuts and gathers."""

    def __init__(self, problem: Problem) -> None:
        self._problem, points = problem, problem.points
        shape = np.array(problem.volume.shape)
        outside = ((points < -0.5) | (points > shape - 0.5)).any(-1)
        normal = ((2 * points + 1) / shape - 1).astype(np.float32)
        self._grid = torch.from_numpy(normal)[None, None]
        self._outside = torch.from_numpy(outside)
        self._mean = torch.from_numpy(problem.mean)
        self._inv_std = torch.from_numpy(problem.inv_std * problem.geometry.in_grid)

    def __call__(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        problem = self._problem
        real = torch.from_numpy(volume.T).float().mul(problem.slope).add_(problem.inter)
        tokens = F.grid_sample(
            real[None, None], self._grid, padding_mode="border", align_corners=False
        )[0, 0, 0]
        tokens.masked_fill_(self._outside, 0.0)
        return tokens.sub_(self._mean).mul_(self._inv_std).numpy()


class Scipy:
    """`affine_transform` of first order, pad, cut into cubes, gather, normalise."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._active = problem, problem.active
        scale, self._offset = problem.matrix[2::-1, 2::-1], problem.matrix[2::-1, 3]
        diagonal = np.diag(np.diag(scale))
        # a vector instead of a matrix lets SciPy take its faster path
        self._scale = np.diag(scale) if (scale == diagonal).all() else scale
        # beyond half a voxel outside, where SciPy has no such rule
        points = problem.points
        shape = np.array(problem.volume.shape)
        self._outside = ((points < -0.5) | (points > shape - 0.5)).any(-1)
        geometry = problem.geometry
        self._pad = [
            (0, n * geometry.cube - size)
            for n, size in zip(geometry.cube_grid[::-1], geometry.grid[::-1], strict=True)
        ]
        self._inv_std = problem.inv_std * geometry.in_grid

    def __call__(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        problem, r = self._problem, self._problem.geometry.cube
        real = volume.T.astype(np.float32) * np.float32(problem.slope) + np.float32(problem.inter)
        grid = ndimage.affine_transform(
            real,
            self._scale,
            self._offset,
            problem.geometry.grid[::-1],
            order=1,
            mode="nearest",
        )
        padded = np.pad(grid, self._pad)
        z, y, x = (n // r for n in padded.shape)
        cubes = padded.reshape(z, r, y, r, x, r).transpose(4, 2, 0, 5, 3, 1)
        tokens = cubes[self._active].reshape(problem.mean.shape)
        tokens[self._outside] = 0
        tokens -= problem.mean
        tokens *= self._inv_std
        return tokens
