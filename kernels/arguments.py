"""The arguments of a resample, checked by name before anything runs."""

from __future__ import annotations

from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .geometry import Geometry

VOLUME_TYPES = ("int16", "uint16", "float16", "float32")
TOKEN_TYPES = ("float32", "float16", "bfloat16")
_LARGEST = float(np.finfo(np.float32).max)


def check_volume(volume: NDArray[Any], dimensions: tuple[int, ...]) -> None:
    """Refuse other axes, empty axes, and types that the kernels do not read."""
    _check_array("volume", volume)
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
    try:
        matrix = np.ascontiguousarray(matrix, np.float64)
    except (TypeError, ValueError) as exc:
        raise TypeError(f"'model_to_source' must be a 4x4 matrix of numbers ({exc})") from exc
    if matrix.shape != (4, 4):
        raise ValueError(f"'model_to_source' must be a finite 4x4 matrix; got shape {matrix.shape}")
    x, y, z = volume.shape[-3:]
    _check_affine(matrix.tobytes(), (x > 1, y > 1, z > 1), geometry.grid)
    return matrix


@lru_cache(maxsize=64)
def _check_affine(rows: bytes, thick: tuple[bool, bool, bool], grid: tuple[int, int, int]) -> None:
    matrix = np.frombuffer(rows).reshape(4, 4)
    if not np.isfinite(matrix).all():
        raise ValueError("'model_to_source' must be a finite 4x4 matrix; it holds NaN or infinity")
    if not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise ValueError(f"'model_to_source' must end with the row 0 0 0 1; got {matrix[3]}")
    # a resize from or onto a single voxel may collapse that axis, and no other
    wide = [size > 1 for size in grid]
    kept = matrix[:3, :3][list(thick)][:, wide]
    if kept.size and np.linalg.matrix_rank(kept) < sum(thick) + sum(wide) - 3:
        raise ValueError("'model_to_source' is singular: it maps the grid onto a plane or a line")


def check_numbers(**numbers: float) -> None:
    """Refuse NaN, and what is infinite in float32, in which every fast implementation computes."""
    for name, number in numbers.items():
        if not isinstance(number, Real):
            raise TypeError(f"'{name}' must be a number; got {type(number).__name__}")
        if not abs(number) <= _LARGEST:
            raise ValueError(f"'{name}' must be finite in float32; got {number}")


def checked_statistics(
    name: str, values: NDArray[Any] | None, shape: tuple[int, int]
) -> NDArray[np.float32] | None:
    """Statistics as contiguous float32 of the tokens' shape."""
    if values is None:
        return None
    _check_array(name, values)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"'{name}' must hold real numbers; got {values.dtype}")
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
    out: NDArray[Any] | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    volume: NDArray[Any],
) -> NDArray[Any]:
    """The array to fill, which is not the volume's memory; a new one if none is given."""
    if out is None:
        return np.empty(shape, dtype)
    _check_array("out", out)
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"'out' must be {shape} {dtype}; got {out.shape} {out.dtype}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("'out' must be C-contiguous and writeable; np.empty makes such an array")
    if np.may_share_memory(out, volume):
        raise ValueError("'out' must not lie in the memory of 'volume', which is read meanwhile")
    return out


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"'{name}' must be a NumPy array; got {type(value).__name__}")
