"""The truth that every faster implementation is held against: plain NumPy in float64.

    tokens[n, c] = (trilinear(volume * slope + inter, M g(n, c)) - mean[n, c]) * inv_std[n, c]

with g(n, c) the model-grid voxel of element c of cube n; 0 in the padding.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import Geometry

REACH = 0.5 + 2**-16
"""Voxels that the edge reaches outwards: half of one, and so little more that rounding does not
decide about a point on the very limit."""


def sample_trilinear(
    volume: NDArray[Any], points: NDArray[np.float64], slope: float, inter: float, fill: float
) -> NDArray[np.float64]:
    """Trilinear samples of a volume.

    Parameters
    ----------
    volume : (X, Y, Z) any real
        Stored values.
    points : (..., 3) float64
        Voxel coordinates. Up to half a voxel outside is clamped to the edge, beyond that is `fill`.
    slope, inter : float
        Turn stored values into real ones.
    fill : float
        Real value outside.

    Returns
    -------
    samples : (...) float64
    """
    values = np.ascontiguousarray(volume, np.float64).ravel()
    x, y, z = (_neighbours(points[..., axis], size) for axis, size in enumerate(volume.shape))
    samples = np.zeros(points.shape[:-1])
    for (i, wi), (j, wj), (k, wk) in itertools.product(x, y, z):
        flat = (i * volume.shape[1] + j) * volume.shape[2] + k
        samples += values[flat] * (wi * wj * wk)
    far = np.array(volume.shape) - 1 + REACH
    outside = ((points < -REACH) | (points > far)).any(axis=-1)
    return np.where(outside, fill, samples * slope + inter)


def _neighbours(
    point: NDArray[np.float64], size: int
) -> tuple[tuple[NDArray[np.int64], NDArray[np.float64]], ...]:
    """Lower and upper neighbour of each coordinate on one axis, with their weights."""
    point = np.clip(point, 0, size - 1)
    low = np.minimum(point.astype(np.int64), max(size - 2, 0))
    high = np.minimum(low + 1, size - 1)
    return (low, 1 - (point - low)), (high, point - low)


def resample_reference(
    volume: NDArray[Any],
    geometry: Geometry,
    model_to_source: NDArray[np.float64],
    slope: float,
    inter: float,
    mean: NDArray[Any] | None,
    inv_std: NDArray[Any] | None,
    fill: float,
    out: NDArray[Any],
) -> None:
    """Fill `out` with tokens; the arguments are those of `resample_patchify`, already checked."""
    points = geometry.voxels @ model_to_source[:3, :3].T + model_to_source[:3, 3]  # (N, C, 3)
    tokens = sample_trilinear(volume, points, slope, inter, fill)
    if mean is not None:
        tokens -= mean
    if inv_std is not None:
        tokens = np.where(inv_std > 0, tokens * inv_std, 0.0)  # masked even where it is NaN
    out[...] = np.where(geometry.in_grid, tokens, 0.0)
