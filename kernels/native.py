"""The native CPU code, called on arguments that are already checked.

`resample.c` is built with the package. It allocates nothing and releases the GIL.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import Geometry
from .place import place

_TYPES = {"int16": 0, "uint16": 1, "float16": 2, "float32": 3, "bfloat16": 4}
_ELEMENTS_OF_A_THREAD = 1 << 17


def native_code() -> ModuleType:
    """The extension module.

    Raises
    ------
    ImportError
        It is not built; the message holds the command.
    """
    try:
        from . import _native
    except ImportError as exc:
        raise ImportError(
            "the native code of scanside.kernels is not built; run 'pip install --no-deps -e .' in "
            f"the checkout, or reinstall scanside ({exc})"
        ) from exc
    return _native


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that this CPU has code for; the last is used."""
    return native_code().instruction_sets()


def threads_for(elements: int, most: int | None) -> int:
    """Threads for some work: at most `most` or the usable cores, and one where it takes less than a
    fraction of a millisecond."""
    cores = len(os.sched_getaffinity(0)) if most is None else most
    return max(1, min(cores, elements // _ELEMENTS_OF_A_THREAD))


def resample_native(
    volumes: NDArray[Any],
    geometry: Geometry,
    model_to_source: NDArray[np.float64],
    slope: float,
    inter: float,
    mean: NDArray[np.float32] | None,
    inv_std: NDArray[np.float32] | None,
    fill: float,
    out: NDArray[Any],
    *,
    threads: int | None = None,
    instruction_set: str | None = None,
) -> None:
    """Fill `out` (B, N, C) with the tokens of `volumes` (B, X, Y, Z)."""
    native = native_code()
    _, x, y, z = volumes.shape
    fastest = int(np.argmin(np.abs(volumes.strides[1:])))
    at = place(geometry.grid, (x, y, z), fastest, model_to_source.tobytes())
    a, b, c = at.axes
    tables = at.tables
    native.tokens(
        volumes.transpose(0, a + 1, b + 1, c + 1),
        _TYPES[volumes.dtype.name],
        slope,
        inter,
        out.view(np.uint16) if out.dtype.name == "bfloat16" else out,
        _TYPES[out.dtype.name],
        geometry.corners,
        geometry.cube,
        geometry.grid,
        at.matrix,
        tables and tables.low,
        tables and tables.weight,
        tables and tables.outside,
        mean,
        inv_std,
        fill,
        threads_for(out.size, threads),
        _set_number(native, instruction_set),
    )


def sample_native(
    volume: NDArray[Any],
    points: NDArray[np.float64],
    slope: float,
    inter: float,
    fill: float,
    out: NDArray[np.float32],
    gradient: NDArray[np.float32] | None,
    *,
    threads: int | None = None,
    instruction_set: str | None = None,
) -> None:
    """Fill `out` (...) and `gradient` (..., 3) with samples of `volume` at `points` (..., 3)."""
    native = native_code()
    native.points(
        volume,
        _TYPES[volume.dtype.name],
        slope,
        inter,
        points.reshape(-1, 3),
        out,
        gradient,
        fill,
        threads_for(out.size, threads),
        _set_number(native, instruction_set),
    )


def _set_number(native: ModuleType, name: str | None) -> int:
    names = native.instruction_sets()
    return len(names) - 1 if name is None else names.index(name)
