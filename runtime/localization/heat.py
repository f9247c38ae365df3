"""Relevance of cubes to a heat map on the model grid, and from there to a volume's own grid.

Both ways are one pass of the resample kernel: the grid of cubes is a small volume whose voxels are
the cubes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...kernels import Geometry, Resampler

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

_TILE = 16
"""Edge of the cubes in which a map on a volume's grid is made, for speed alone."""
_LEAST = 1e-12


class CubeMap:
    """Brings values of one encoder's cubes to the model grid by trilinear interpolation.

    A cube's value belongs to its centre. Only active cubes have one: where a neighbour has none,
    the others count alone. Outside the active cubes, and in voxels that the encoder does not read,
    the map is 0.

    Parameters
    ----------
    geometry : Geometry
    live : (N, C) bool
        Elements of the tokens that are voxels of the grid and not masked.
    threads : int
    """

    def __init__(self, geometry: Geometry, live: NDArray[np.bool_], threads: int) -> None:
        self.geometry = geometry
        self._live = live
        self._resample = Resampler(geometry, impl="cpu", threads=threads)
        self._matrix = _cubes_of_voxels(geometry)

    def tokens(self, values: Floats) -> Floats:
        """Interpolated values, (N,) -> (N, C), for every element of the encoder's tokens."""
        return self._at_voxels(values) * self._weight

    def grid(self, values: Floats) -> Floats:
        """Interpolated values, (N,) -> (X, Y, Z), on the model grid."""
        out = np.zeros(self.geometry.grid, np.float32)
        out.flat[self._where] = self.tokens(values)[self._live]
        return out

    def tokens_of(self, grid: Floats) -> Floats:
        """A map on the model grid, (X, Y, Z), as this encoder's tokens (N, C)."""
        out = np.zeros(self.geometry.shape, np.float32)
        out[self._live] = grid.ravel()[self._where]
        return out

    @cached_property
    def _weight(self) -> Floats:
        """(N, C) one over the share of a voxel's neighbours that are active. Made for the first
        map, as `_where` is, which warming up draws.
        """
        share = self._at_voxels(np.ones(len(self.geometry.active), np.float32))
        return (1 / np.maximum(share, _LEAST)).astype(np.float32)

    @cached_property
    def _where(self) -> NDArray[np.intp]:
        """(V,) flat indices of the live voxels into the model grid."""
        x, y, z = self.geometry.voxels[self._live].T
        return np.asarray(np.ravel_multi_index((x, y, z), self.geometry.grid))

    def _at_voxels(self, values: Floats) -> Floats:
        cubes = np.zeros(self.geometry.cube_grid, np.float32)
        cubes.flat[self.geometry.active] = values
        return self._resample(cubes, model_to_source=self._matrix)


def _cubes_of_voxels(geometry: Geometry) -> Matrix:
    """Voxel centres of the model grid to coordinates in the grid of cubes, (4, 4)."""
    matrix = np.eye(4)
    matrix[[0, 1, 2], [0, 1, 2]] = 1 / geometry.cube
    matrix[:3, 3] = (np.array(geometry.pad_front) + 0.5) / geometry.cube - 0.5
    return matrix


def fuse(maps: Sequence[Floats], fusion: str) -> Floats:
    """Several encoders' maps (X, Y, Z) of one concept as one, each scaled to its largest value.

    The first map is that of the encoder that decodes; "others" is the mean of those behind it.
    """
    if len(maps) == 1:
        return maps[0]
    scaled = np.stack([scale(one, "max") for one in maps])
    if fusion == "max":
        return scaled.max(0)
    return scaled[1:].mean(0) if fusion == "others" else scaled.mean(0)


def scale(heat: Floats, scaling: str) -> Floats:
    """A finished map: divided by its largest absolute value, brought to 0 to 1, or as it is."""
    if scaling == "none":
        return heat
    low, high = float(heat.min()), float(heat.max())
    if scaling == "minmax":
        return (heat - low) / max(high - low, _LEAST)
    return heat / max(high, -low, _LEAST)


def to_volume(heat: Floats, model_to_source: Matrix, shape: Sequence[int], threads: int) -> Floats:
    """A map on the model grid, carried to a volume's own grid; 0 outside the model grid.

    Parameters
    ----------
    heat : (X, Y, Z) float32
    model_to_source : (4, 4) float64
        Voxel centres of the model grid to those of the volume.
    shape : (3,) int
        Of the volume.
    threads : int
    """
    x, y, z = shape
    out = np.zeros((x, y, z), np.float32)
    tiles = _tiles(heat, model_to_source, shape)
    if not len(tiles):
        return out
    counts = [-(-size // _TILE) for size in shape]
    flat = np.asarray(np.ravel_multi_index(tuple(tiles.T), counts), np.int64)
    geometry = Geometry(grid=(x, y, z), cube=_TILE, active=flat)
    resample = Resampler(geometry, impl="cpu", threads=threads)
    source_to_model = np.asarray(np.linalg.inv(model_to_source), np.float64)
    cut = resample(heat, model_to_source=source_to_model)
    for tile, values in zip(tiles * _TILE, cut.reshape(-1, _TILE, _TILE, _TILE), strict=True):
        place = out[tuple(slice(first, first + _TILE) for first in tile)]
        place[:] = values[tuple(slice(size) for size in place.shape)]
    return out


def _tiles(heat: Floats, model_to_source: Matrix, shape: Sequence[int]) -> NDArray[np.int64]:
    """(n, 3) tiles of a volume's grid within the box around all that is not 0."""
    sides = [np.flatnonzero(heat.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not len(sides[0]):
        return np.empty((0, 3), np.int64)
    # trilinear interpolation spreads a voxel to its neighbours' centres
    ends = [(side[0] - 1, side[-1] + 1) for side in sides]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
    points = corners @ model_to_source[:3, :3].T + model_to_source[:3, 3]
    low = np.clip(np.floor(points.min(0)), 0, np.array(shape) - 1).astype(int) // _TILE
    high = np.clip(np.ceil(points.max(0)), 0, np.array(shape) - 1).astype(int) // _TILE
    ranges = [np.arange(first, last + 1) for first, last in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)


def to_image(heat: Floats, affine: Matrix, concept: str) -> object:
    """A heat map as a nibabel image that says what it shows."""
    import nibabel as nib

    image = nib.Nifti1Image(heat, affine)
    image.header.set_xyzt_units("mm")
    image.header["cal_max"] = float(heat.max())
    # 80 bytes, of which the last ends the text
    image.header["descrip"] = f"where: {concept}".encode()[:79]
    return image
