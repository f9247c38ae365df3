"""From a volume to tokens: resample onto the model grid, normalise, cut into cubes.

This is the face: it checks every argument and chooses the implementation openly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .geometry import Geometry
from .resample_reference import resample_reference

IMPLEMENTATIONS = ("reference",)
VOLUME_TYPES = ("int16", "uint16", "float16", "float32")
TOKEN_TYPES = ("float32", "float16", "bfloat16")


def resample_patchify(
    volume: NDArray[Any],
    geometry: Geometry,
    *,
    model_to_source: NDArray[np.float64],
    slope: float = 1.0,
    inter: float = 0.0,
    mean: NDArray[Any] | None = None,
    inv_std: NDArray[Any] | None = None,
    fill: float = 0.0,
    dtype: DTypeLike = np.float32,
    impl: str = "auto",
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Tokens of one volume: `(trilinear(volume * slope + inter) - mean) * inv_std`.

    Parameters
    ----------
    volume : (X, Y, Z) int16, uint16, float16 or float32
        Stored values, in any memory layout.
    geometry : Geometry
        Model grid, cubes and active list.
    model_to_source : (4, 4) float64
        Maps voxel centres of the model grid to voxel centres of the volume; not singular, except
        that an axis may be collapsed to one voxel by a resize.
    slope, inter : float
        Turn stored values into real ones.
    mean, inv_std : (N, C) float, optional
        Statistics in real units; inv_std is finite and at least 0, where 0 masks a voxel.
    fill : float
        Real value of points more than half a voxel outside the volume; nearer ones take the edge's
        value.
    dtype : float32, float16 or bfloat16
        Type of the tokens.
    impl : {"auto", "reference"}
        Implementation.
    out : (N, C) dtype, optional
        Array to fill.

    Returns
    -------
    tokens : (N, C) dtype

    Raises
    ------
    TypeError, ValueError
        The message names the argument.
    """
    if impl not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(
            f"'impl' must be auto or one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}"
        )
    _check_volume(volume)
    matrix = _checked_matrix(model_to_source, volume, geometry)
    for name, number in (("slope", slope), ("inter", inter), ("fill", fill)):
        if not np.isfinite(number):
            raise ValueError(f"'{name}' must be finite; got {number}")
    _check_statistics("mean", mean, geometry.shape)
    _check_statistics("inv_std", inv_std, geometry.shape)
    if inv_std is not None and inv_std.size and inv_std.min() < 0:
        raise ValueError(f"'inv_std' must be at least 0; its least value is {inv_std.min()}")
    out = _output(out, geometry.shape, np.dtype(dtype))
    resample_reference(volume, geometry, matrix, slope, inter, mean, inv_std, fill, out)
    return out


def _check_volume(volume: NDArray[Any]) -> None:
    if volume.ndim != 3 or 0 in volume.shape:
        raise ValueError(f"'volume' must have three axes, none empty; got shape {volume.shape}")
    if volume.dtype.name not in VOLUME_TYPES or not volume.dtype.isnative:
        raise TypeError(
            f"'volume' must be {', '.join(VOLUME_TYPES)} in native byte order; got {volume.dtype}"
        )


def _checked_matrix(
    matrix: NDArray[np.float64], volume: NDArray[Any], geometry: Geometry
) -> NDArray[np.float64]:
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"'model_to_source' must be a finite 4x4 matrix; got shape {matrix.shape}")
    if not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise ValueError(f"'model_to_source' must end with the row 0 0 0 1; got {matrix[3]}")
    # a resize from or onto a single voxel collapses that axis, and is no mistake
    flat = 1 in (*volume.shape, *geometry.grid)
    if np.linalg.matrix_rank(matrix[:3, :3]) < 3 and not flat:
        raise ValueError("'model_to_source' is singular: it maps the grid onto a plane or a line")
    return matrix


def _check_statistics(name: str, values: NDArray[Any] | None, shape: tuple[int, int]) -> None:
    if values is None:
        return
    if values.shape != shape:
        raise ValueError(f"'{name}' must have the shape {shape} of the tokens; got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"'{name}' must be finite")


def _output(out: NDArray[Any] | None, shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.name not in TOKEN_TYPES:
        raise TypeError(f"'dtype' must be {', '.join(TOKEN_TYPES)}; got {dtype}")
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"'out' must be {shape} {dtype}; got {out.shape} {out.dtype}")
    return out
