"""Which voxels of a volume the encoder reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...kernels import Geometry


def read_region(
    geometry: Geometry, model_to_source: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Voxels whose nearest voxel of the model grid lies in an active cube.

    Parameters
    ----------
    geometry : Geometry
        Model grid and its active cubes.
    model_to_source : (4, 4) float64
        Maps voxel indices of the model grid to those of the volume.
    shape : (3,) int
        Shape of the volume.

    Returns
    -------
    (X, Y, Z) bool
    """
    source_to_model = np.linalg.inv(model_to_source)
    index = np.indices(shape).reshape(3, -1).T
    voxel = np.rint(index @ source_to_model[:3, :3].T + source_to_model[:3, 3]).astype(np.int64)
    in_grid: NDArray[np.bool_] = np.all((voxel >= 0) & (voxel < geometry.grid), axis=1)
    active = np.zeros(geometry.cube_grid, bool)
    active.flat[geometry.active] = True
    cube = np.where(in_grid[:, None], (voxel + geometry.pad_front) // geometry.cube, 0)
    x, y, z = cube.T
    return (active[x, y, z] & in_grid).reshape(shape)
