"""The arguments of a resample, checked by name before anything runs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .geometry import Geometry

VOLUME_TYPES = ("int16", "uint16", "float16", "float32")
TOKEN_TYPES = ("float32", "float16", "bfloat16")


def check_volume(volume: NDArray[Any], dimensions: tuple[int, ...]) -> None:
    """Refuse other axes, empty axes, and types that the kernels do not read."""
    if volume.ndim not in dimensions or 0 in volume.shape:
        batch = " (or four, the batch first)" if 4 in dimensions else ""
        raise ValueError(
            f"'volume' must have three axes{batch}, none empty; got shape {volume.shape}"
        )
    if volume.dtype.name not in VOLUME_TYPES or not volume.dtype.isnative:
        raise TypeError(
            f"'volume' must be {', '.join(VOLUME_TYPES)} in native byte order; got {volume.dtype}"
        )


def checked_matrix(
    matrix: NDArray[np.float64], volume: NDArray[Any], geometry: Geometry
) -> NDArray[np.float64]:
    """The matrix as (4, 4) float64, if it is an affine that collapses no more than it may."""
    matrix = np.ascontiguousarray(matrix, np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"'model_to_source' must be a finite 4x4 matrix; got shape {matrix.shape}")
    # a resize from or onto a single voxel collapses that axis, and is no mistake
    _check_affine(matrix.tobytes(), 1 in (*volume.shape[-3:], *geometry.grid))
    return matrix


@lru_cache(maxsize=64)
def _check_affine(rows: bytes, flat: bool) -> None:
    matrix = np.frombuffer(rows).reshape(4, 4)
    if not np.isfinite(matrix).all():
        raise ValueError("'model_to_source' must be a finite 4x4 matrix; it holds NaN or infinity")
    if not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise ValueError(f"'model_to_source' must end with the row 0 0 0 1; got {matrix[3]}")
    if np.linalg.matrix_rank(matrix[:3, :3]) < 3 and not flat:
        raise ValueError("'model_to_source' is singular: it maps the grid onto a plane or a line")


def check_numbers(**numbers: float) -> None:
    """Refuse NaN and infinity."""
    for name, number in numbers.items():
        if not np.isfinite(number):
            raise ValueError(f"'{name}' must be finite; got {number}")


def checked_statistics(
    name: str, values: NDArray[Any] | None, shape: tuple[int, int]
) -> NDArray[np.float32] | None:
    """Statistics as contiguous float32 of the tokens' shape."""
    if values is None:
        return None
    if values.shape != shape:
        raise ValueError(f"'{name}' must have the shape {shape} of the tokens; got {values.shape}")
    with np.errstate(over="ignore"):  # refused as infinite below
        values = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"'{name}' must be finite in float32; it holds NaN or infinity")
    if name == "inv_std" and values.size and values.min() < 0:
        raise ValueError(f"'inv_std' must be at least 0; its least value is {values.min()}")
    return values


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no machine has."""
    if threads is not None and not 1 <= threads <= 1024:
        raise ValueError(f"'threads' must be 1 to 1024; got {threads}")


def checked_type(dtype: DTypeLike) -> np.dtype[Any]:
    """Type of the tokens; bfloat16 is NumPy's once ml_dtypes is imported."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise TypeError(
            f"'dtype' must be {', '.join(TOKEN_TYPES)}; NumPy knows no {dtype!r} "
            "(for bfloat16 pass ml_dtypes.bfloat16)"
        ) from None
    if found.name not in TOKEN_TYPES or not found.isnative:
        raise TypeError(f"'dtype' must be {', '.join(TOKEN_TYPES)}; got {found}")
    return found


def checked_output(
    out: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The array to fill; a new one if none is given."""
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"'out' must be {shape} {dtype}; got {out.shape} {out.dtype}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("'out' must be C-contiguous and writeable; np.empty makes such an array")
    return out
