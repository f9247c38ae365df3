"""The same tokens as a good user makes them with torch, and with SciPy.

Each rival is prepared once for its geometry, as ours is; a call does only what each volume needs.
Volumes are Fortran-ordered, so both work on the transposed view (Z, Y, X), which is contiguous and
no copy. Of the ways that were tried the fastest is here: one `index_select` through places made
once pads, cuts and gathers in a single copy, which takes a third of the time of `pad`, `reshape`
and an indexed `permute`; `grid_sample` is asked for elements inside the grid only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from resample_problem import INTER, SLOPE, Problem
from scipy import ndimage
from torch.nn import functional as F


class _Torch:
    """What both ways share: dequantise in one pass before, normalise in one pass after."""

    def __init__(self, problem: Problem, device: str, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._inter = torch.tensor(INTER, device=device)
        self._inv_std = self._on_device(problem.masked)
        self._shift = self._on_device(-problem.mean * problem.masked)

    def _on_device(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _real(self, stored: torch.Tensor) -> torch.Tensor:
        """(B, 1, Z, Y, X) float32."""
        return torch.add(self._inter, stored.float(), alpha=SLOPE)[:, None]

    def _tokens(self, values: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """(B, N, C) from (B, ...), through the place of each element among the values."""
        if places is not None and len(values) == 1:
            values = values.reshape(-1).index_select(0, places)
        elif places is not None:
            values = values.flatten(1).index_select(1, places)
        values = values.reshape(-1, *self._shift.shape)
        return torch.addcmul(self._shift, values, self._inv_std).to(self._dtype)


class TorchResize(_Torch):
    """`interpolate`, then the elements of the active cubes."""

    def __init__(
        self, problem: Problem, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(problem, device, dtype)
        geometry = problem.geometry
        self._size = geometry.grid[::-1]
        x, y, z = np.moveaxis(geometry.voxels, -1, 0)
        flat = (z * geometry.grid[1] + y) * geometry.grid[0] + x
        self._places = self._on_device(np.where(geometry.in_grid, flat, 0).ravel().astype("i4"))

    def __call__(self, stored: torch.Tensor) -> torch.Tensor:
        grid = F.interpolate(self._real(stored), self._size, mode="trilinear")
        return self._tokens(grid, self._places)


class TorchAffine(_Torch):
    """`grid_sample` at the points of the active cubes, then zeros for what is padding."""

    def __init__(
        self, problem: Problem, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(problem, device, dtype)
        in_grid, shape = problem.geometry.in_grid, np.array(problem.shape)
        normal = ((2 * problem.points[in_grid] + 1) / shape - 1).astype(np.float32)  # (P, 3)
        outside = problem.outside[in_grid]
        self._points = self._on_device(normal)[None, None, None]
        self._outside = self._on_device(outside) if outside.any() else None
        place = np.cumsum(in_grid.ravel()) - 1
        padded = np.where(in_grid.ravel(), place, 0).astype(np.int32)
        self._places = None if in_grid.all() else self._on_device(padded)

    def __call__(self, stored: torch.Tensor) -> torch.Tensor:
        points = self._points.expand(len(stored), -1, -1, -1, -1)
        values = F.grid_sample(
            self._real(stored), points, padding_mode="border", align_corners=False
        )[:, 0, 0, 0]  # (B, P)
        if self._outside is not None:
            values.masked_fill_(self._outside, 0.0)
        return self._tokens(values, self._places)


class Scipy:
    """`affine_transform` of first order, pad, cut into cubes, gather, normalise."""

    def __init__(self, problem: Problem) -> None:
        self._problem, geometry = problem, problem.geometry
        self._active = np.unravel_index(geometry.active, geometry.cube_grid)
        scale, self._offset = problem.matrix[2::-1, 2::-1], problem.matrix[2::-1, 3]
        diagonal = np.diag(np.diag(scale))
        # a vector instead of a matrix lets SciPy take its faster path
        self._scale = np.diag(scale) if (scale == diagonal).all() else scale
        self._outside = problem.outside  # SciPy has no rule of half a voxel
        self._pad = [
            (0, n * geometry.cube - size)
            for n, size in zip(geometry.cube_grid[::-1], geometry.grid[::-1], strict=True)
        ]
        self._inv_std = problem.masked
        self._grid = np.empty(geometry.grid[::-1], np.float32)

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """(N, C) of one volume (Z, Y, X)."""
        problem, r = self._problem, self._problem.geometry.cube
        real = stored.astype(np.float32) * np.float32(SLOPE) + np.float32(INTER)
        grid = ndimage.affine_transform(
            real,
            self._scale,
            self._offset,
            output=self._grid,
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
