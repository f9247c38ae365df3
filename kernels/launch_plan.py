"""What a launch of the compiled kernel is told: tiles, lane order, and the fixed-point matrix.

Plain NumPy, so that the launcher and the interpreter in the tests are told the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arguments import check_numbers
from .geometry import Geometry
from .variants import ARGUMENTS, BLOCK

_FARTHEST = 1 << 30
_PROGRAMS = 4096
"""Programs that keep the largest card busy; a batch is divided until there are as many."""

Values = dict[str, int | float | tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """One launch: how many programs, and every argument that is not a pointer."""

    programs: tuple[int, int, int]
    """Along the three axes of the launch; one of them is 0 where there is nothing to do."""
    skipped_bytes: int
    """From the first voxel of a volume to the lowest address in it: not 0 where it is flipped."""
    values: Values

    def flat(self) -> list[int | float]:
        """The values of the arguments behind the pointers, in the order of the contract."""
        flat: list[int | float] = []
        for name, _, _ in ARGUMENTS:
            if not name.endswith("_ptr"):
                value = self.values[name]
                flat += value if isinstance(value, tuple) else (value,)
        return flat


def launch_plan(
    geometry: Geometry,
    *,
    shape: Sequence[int],
    strides: Sequence[int],
    model_to_source: NDArray[np.float64],
    slope: float = 1.0,
    inter: float = 0.0,
    fill: float = 0.0,
    mean: bool = False,
    inv_std: bool = False,
) -> LaunchPlan:
    """Plan a launch.

    Parameters
    ----------
    geometry : Geometry
    shape : (4,) int
        B X Y Z of the volumes.
    strides : (4,) int
        In bytes.
    model_to_source : (4, 4) float64
        Grid voxel to volume voxel.
    slope, inter, fill : float
        As in `resample_patchify`.
    mean, inv_std : bool
        Whether there are such statistics.

    Raises
    ------
    ValueError
        Numbers that the kernel cannot hold; the message names the argument.
    """
    matrix, strides, skipped = _without_flips(model_to_source, shape, strides)
    check_numbers(slope=slope, inter=inter, fill=fill)
    _check_limits(geometry, shape, strides, matrix)
    order = _lane_order(matrix, strides[1:])
    tile = _tile(geometry.cube, order)
    n_tiles, i_tiles, j_tiles = (
        -(-size // part)
        for size, part in zip(
            (len(geometry.active), geometry.cube, geometry.cube), tile, strict=False
        )
    )
    volumes = shape[0]
    chunks = min(volumes, -(-_PROGRAMS // max(n_tiles * i_tiles * j_tiles, 1)))
    step = -(-volumes // max(chunks, 1))
    ranks = _ranks(tile, order)
    sizes = (tile[1] * tile[2] * tile[3], *ranks, *tile[1:])
    values: Values = {
        "matrix": tuple(int(v) for v in np.rint(matrix[:3] * 2.0**32).astype(np.int64).ravel()),
        "volumes_stride": strides[0],
        "strides": strides[1:],
        "shape": tuple(shape[1:]),
        "grid_shape": geometry.grid,
        "tile": tile,
        "ranks": ranks,
        "inverses": tuple((1 << 20) // size + 1 for size in sizes),
        "TILES_J": j_tiles,
        "CUBE": geometry.cube,
        "N": len(geometry.active),
        "B": volumes,
        "B_STEP": max(step, 1),
        "has_mean": int(mean),
        "has_inv_std": int(inv_std),
        "slope": slope,
        "inter": inter,
        "fill": fill,
    }
    programs = (n_tiles, i_tiles, j_tiles * (-(-volumes // step) if step else 0))
    return LaunchPlan(programs=programs, skipped_bytes=skipped, values=values)


def _without_flips(
    matrix: NDArray[np.float64], shape: Sequence[int], strides: Sequence[int]
) -> tuple[NDArray[np.float64], tuple[int, ...], int]:
    """The same voxels with strides of at least 0: a flip becomes part of the matrix."""
    matrix, kept, skipped = np.array(matrix, np.float64), [strides[0]], 0
    for axis, (size, stride) in enumerate(zip(shape[1:], strides[1:], strict=True)):
        if stride < 0:
            skipped += (size - 1) * stride
            matrix[axis] *= -1
            matrix[axis, 3] += size - 1
        kept.append(abs(stride) if size > 1 else 0)
    return matrix, tuple(kept), skipped


def _check_limits(
    geometry: Geometry,
    shape: Sequence[int],
    strides: Sequence[int],
    matrix: NDArray[np.float64],
) -> None:
    span = sum((size - 1) * stride for size, stride in zip(shape[1:], strides[1:], strict=True))
    if span >= 1 << 31:
        raise ValueError(
            f"'volume' spans {span} bytes of memory; on a GPU less than 2^31, so copy it to its own"
        )
    padded = [n * geometry.cube for n in geometry.cube_grid]
    farthest = np.abs(matrix[:3, :3]) @ padded + np.abs(matrix[:3, 3])
    if not farthest.max() < _FARTHEST:
        raise ValueError(
            f"'model_to_source' leads {farthest.max():.0e} voxels away; expected less than 1e9"
        )


def _lane_order(matrix: NDArray[np.float64], strides: Sequence[int]) -> tuple[int, ...]:
    """Grid axes from the one along which the source's addresses grow least."""
    steps = np.abs(matrix[:3, :3]).T @ np.array(strides, np.float64)
    if steps[2] <= steps.min():
        return 2, 1, 0
    return tuple(sorted(range(3), key=lambda axis: float(steps[axis])))


def _tile(cube: int, order: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Whole rows along k, then along the source, then the rest; several cubes if they are small."""
    sizes, room = [1, 1, 1], BLOCK
    for axis in dict.fromkeys((2, order[0], 1, 0)):
        sizes[axis] = min(cube, room)
        room //= sizes[axis]
    i, j, k = sizes
    return (room if sizes == [cube] * 3 else 1), i, j, k


def _ranks(tile: tuple[int, int, int, int], order: tuple[int, ...]) -> tuple[int, int, int]:
    ranks, rank = [1, 1, 1], 1
    for axis in order:
        ranks[axis] = rank
        rank *= tile[1 + axis]
    i, j, k = ranks
    return i, j, k
