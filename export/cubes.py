"""Which cubes of the model grid a mask keeps, and arrays on that grid cut into cubes.

NumPy only, and meant for what is done once at export; the fast way from a volume to tokens is
`kernels/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.geometry import Geometry


def pad_widths(grid: Sequence[int], cube: int, pad: str) -> list[tuple[int, int]]:
    """Voxels added before and after each axis so that whole cubes fit.

    Parameters
    ----------
    grid : (3,) int
        Model grid in voxels.
    cube : int
        Edge of a cube in voxels.
    pad : {"back", "front", "both"}
        Where they go.

    Examples
    --------
    >>> pad_widths((83, 104, 81), 14, "back")
    [(0, 1), (0, 8), (0, 3)]
    """
    x, y, z = grid
    geometry = Geometry(grid=(x, y, z), cube=cube, active=np.empty(0, np.int64), pad=pad)
    front = geometry.pad_front
    return [
        (f, n * cube - size - f) for f, n, size in zip(front, geometry.cube_grid, grid, strict=True)
    ]


def cut_cubes(array: NDArray[Any], cube: int, pad: str) -> NDArray[Any]:
    """Cut an array on the model grid into zero-padded cubes.

    Parameters
    ----------
    array : (X, Y, Z) any
        Values on the model grid.

    Returns
    -------
    cubes : (candidates, cube^3) same dtype
        Every cube of the padded grid in C order, each flattened in C order.
    """
    padded = np.pad(array, pad_widths(array.shape, cube, pad))
    a, b, c = (size // cube for size in padded.shape)
    split = padded.reshape(a, cube, b, cube, c, cube)
    return split.transpose(0, 2, 4, 1, 3, 5).reshape(a * b * c, cube**3)


def active_cubes(
    mask: NDArray[Any], cube: int, pad: str, keep_fraction: float
) -> NDArray[np.int64]:
    """Flat indices of the cubes that become tokens.

    A cube does when at least `keep_fraction` of its voxels lie in the mask.

    Parameters
    ----------
    mask : (X, Y, Z) any
        Non-zero inside.

    Returns
    -------
    active : (N,) int64
        Ascending indices into the C-order list of padded cubes.
    """
    inside = cut_cubes(np.asarray(mask) != 0, cube, pad).sum(axis=1)
    return np.flatnonzero((inside > 0) & (inside >= keep_fraction * cube**3))


def posterior_mask(grid: Sequence[int], cube: int, pad: str, count: int) -> NDArray[np.uint8]:
    """A made-up visual-cortex mask: the `count` cubes nearest to the occipital pole.

    The grid's second axis must grow towards anterior ("SAR"), so that the pole lies in the middle
    of its first face.

    Returns
    -------
    mask : (X, Y, Z) uint8
    """
    widths = pad_widths(grid, cube, pad)
    shape = [(size + sum(width)) // cube for size, width in zip(grid, widths, strict=True)]
    centre = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    pole = np.array([(shape[0] - 1) / 2, 0, (shape[2] - 1) / 2])
    distance = np.linalg.norm(centre - pole, axis=-1)
    chosen = np.zeros(distance.size, np.uint8)
    chosen[np.argsort(distance, axis=None, kind="stable")[:count]] = 1
    voxels = np.kron(chosen.reshape(shape), np.ones((cube,) * 3, np.uint8))
    return voxels[tuple(slice(w[0], w[0] + size) for w, size in zip(widths, grid, strict=True))]
