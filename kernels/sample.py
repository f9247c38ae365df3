"""Values and gradients of a volume at any points, for work that moves a volume about."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import check_numbers, check_threads, check_volume
from .native import sample_native

Samples = NDArray[np.float32]


def sample_volume(
    volume: NDArray[Any],
    points: NDArray[np.float64],
    *,
    slope: float = 1.0,
    inter: float = 0.0,
    fill: float = 0.0,
    threads: int | None = None,
) -> Samples:
    """Trilinear samples of a volume, by the native code.

    Parameters
    ----------
    volume : (X, Y, Z) int16, uint16, float16 or float32
        Stored values, in any memory layout.
    points : (..., 3) float64
        Voxel coordinates. Up to half a voxel outside is clamped to the edge; beyond that, or NaN,
        is `fill`.
    slope, inter, fill : float
        Stored values to real ones; real value outside.
    threads : int, optional
        No more than these are used, and fewer for few points; all cores if None.

    Returns
    -------
    samples : (...) float32

    Raises
    ------
    TypeError, ValueError
        The message names the argument.
    """
    samples, _ = _sample(volume, points, slope, inter, fill, threads, gradient=False)
    return samples


def sample_gradient(
    volume: NDArray[Any],
    points: NDArray[np.float64],
    *,
    slope: float = 1.0,
    inter: float = 0.0,
    fill: float = 0.0,
    threads: int | None = None,
) -> tuple[Samples, Samples]:
    """Trilinear samples of a volume, and how they change with the point.

    Parameters
    ----------
    volume, points, slope, inter, fill, threads
        As in `sample_volume`.

    Returns
    -------
    samples : (...) float32
    gradient : (..., 3) float32
        Real units for each voxel along each axis; 0 along an axis on which the point is clamped,
        and 0 where the sample is `fill`.
    """
    samples, gradient = _sample(volume, points, slope, inter, fill, threads, gradient=True)
    assert gradient is not None
    return samples, gradient


def _sample(
    volume: NDArray[Any],
    points: NDArray[np.float64],
    slope: float,
    inter: float,
    fill: float,
    threads: int | None,
    *,
    gradient: bool,
) -> tuple[Samples, Samples | None]:
    check_volume(volume, (3,))
    check_numbers(slope=slope, inter=inter, fill=fill)
    check_threads(threads)
    points = np.ascontiguousarray(points, np.float64)
    if points.ndim == 0 or points.shape[-1] != 3:
        raise ValueError(f"'points' must have the shape (..., 3); got {points.shape}")
    samples = np.empty(points.shape[:-1], np.float32)
    slopes = np.empty(points.shape, np.float32) if gradient else None
    sample_native(volume, points, slope, inter, fill, samples, slopes, threads=threads)
    return samples, slopes
