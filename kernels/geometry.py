"""Where the elements of the tokens lie: the model grid, its padding, and its cubes.

The model grid is padded with zeros to whole cubes; the cubes are numbered in C order over the
padded grid of cubes, and the active ones, in the order given, are the tokens. `cube = 1` with the
voxels of a mask as active list is the plain voxel vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index

import numpy as np
from numpy.typing import NDArray

PADDINGS = ("back", "front", "both")
LARGEST_CUBE = 1024
"""Edge in voxels, to which the native code and the GPU's kernel are built."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """The cubes of a model grid that become tokens.

    Examples
    --------
    >>> geometry = Geometry(grid=(83, 104, 81), cube=14, active=np.array([0, 287]))
    >>> geometry.cube_grid, geometry.shape
    ((6, 8, 6), (2, 2744))
    """

    grid: tuple[int, int, int]
    """Shape of the model grid in voxels."""
    cube: int
    """Edge of a cube in voxels."""
    active: NDArray[np.int64]
    """(N,) flat C-order indices into the padded grid of cubes, each used once."""
    pad: str = "back"
    """Side of each axis that is padded: back, front, or both (an odd voxel goes to the back)."""

    def __post_init__(self) -> None:
        grid = _whole("grid", self.grid)
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"'grid' must be three sizes of at least 1; got {self.grid}")
        (cube,) = _whole("cube", (self.cube,))
        if not 1 <= cube <= LARGEST_CUBE:
            raise ValueError(f"'cube' must be 1 to {LARGEST_CUBE}; got {cube}")
        if self.pad not in PADDINGS:
            raise ValueError(f"'pad' must be one of {', '.join(PADDINGS)}; got {self.pad!r}")
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "cube", cube)
        object.__setattr__(self, "active", self._checked_active())

    def _checked_active(self) -> NDArray[np.int64]:
        active = np.asarray(self.active)
        if active.ndim != 1 or (active.size and not np.issubdtype(active.dtype, np.integer)):
            raise ValueError(
                f"'active' must be a list of integers; got shape {active.shape}, {active.dtype}"
            )
        active = np.ascontiguousarray(active, np.int64)
        candidates = int(np.prod(self.cube_grid))
        wrong = active[(active < 0) | (active >= candidates)]
        if wrong.size:
            raise ValueError(
                f"'active' must lie in 0..{candidates - 1}, the cubes of a {self.cube_grid} grid; "
                f"got {wrong[0]}"
            )
        if np.unique(active).size != active.size:
            raise ValueError("'active' must name each cube once; it holds duplicates")
        return active

    @property
    def cube_grid(self) -> tuple[int, int, int]:
        """Cubes along each axis of the padded grid."""
        x, y, z = (-(-size // self.cube) for size in self.grid)
        return x, y, z

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (N, C) of the tokens."""
        return self.active.size, self.cube**3

    @property
    def pad_front(self) -> tuple[int, int, int]:
        """Voxels of padding in front of each axis."""
        total = [n * self.cube - size for n, size in zip(self.cube_grid, self.grid, strict=True)]
        if self.pad == "back":
            return 0, 0, 0
        x, y, z = total if self.pad == "front" else [t // 2 for t in total]
        return x, y, z

    @cached_property
    def corners(self) -> NDArray[np.int32]:
        """(N, 3) grid voxel of each cube's first element; negative in the padding in front."""
        cubes = np.stack(np.unravel_index(self.active, self.cube_grid), axis=-1)
        return (cubes * self.cube - np.array(self.pad_front)).astype(np.int32)

    @property
    def voxels(self) -> NDArray[np.int64]:
        """(N, C, 3) grid voxel of every token element; outside the grid where it is padding.

        Made anew at each call: it is the largest array about a geometry, and seldom wanted twice.
        """
        return self.voxels_of(0, self.active.size)

    def voxels_of(self, first: int, end: int) -> NDArray[np.int64]:
        """(n, C, 3) grid voxel of every element of the tokens from `first` to before `end`."""
        inside = np.stack(np.unravel_index(np.arange(self.cube**3), (self.cube,) * 3), axis=-1)
        return self.corners[first:end, None].astype(np.int64) + inside[None]

    @cached_property
    def in_grid(self) -> NDArray[np.bool_]:
        """(N, C) False where a token element is padding."""
        along = self.corners[:, :, None] + np.arange(self.cube, dtype=np.int32)  # (N, 3, cube)
        x, y, z = np.moveaxis((along >= 0) & (along < np.array(self.grid)[:, None]), 1, 0)
        inside = x[:, :, None, None] & y[:, None, :, None] & z[:, None, None, :]
        return inside.reshape(self.shape)


def _whole(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(index(size) for size in sizes)
    except TypeError:
        raise TypeError(f"'{name}' must be in whole voxels; got {sizes}") from None


def resize_matrix(
    source_shape: Sequence[int], grid: Sequence[int], align_corners: bool = False
) -> NDArray[np.float64]:
    """Matrix of a pure resize: voxel centres of the grid to voxel centres of the source.

    The conventions are those of `torch.nn.functional.interpolate`.

    Parameters
    ----------
    source_shape, grid : (3,) int
        Sizes in voxels.
    align_corners : bool
        False: the outer faces of both grids coincide (half-pixel). True: the centres of the outer
        voxels do.

    Returns
    -------
    matrix : (4, 4) float64

    Examples
    --------
    >>> resize_matrix((4, 4, 4), (2, 2, 2))[0]
    array([2. , 0. , 0. , 0.5])
    """
    if len(source_shape) != 3 or min(source_shape) < 1:
        raise ValueError(f"'source_shape' must be three sizes of at least 1; got {source_shape}")
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"'grid' must be three sizes of at least 1; got {grid}")
    matrix = np.eye(4)
    for axis, (source, target) in enumerate(zip(source_shape, grid, strict=True)):
        if align_corners:
            matrix[axis, axis] = (source - 1) / (target - 1) if target > 1 else 0.0
        else:
            matrix[axis, axis] = source / target
            matrix[axis, 3] = 0.5 * source / target - 0.5
    return matrix
