"""Rigid motion in millimetres: six parameters, and the matrix that they stand for.

A matrix maps world points (right, anterior, superior) of the reference to where they lie in a moved
volume. The parameters are three shifts in millimetres and three angles in radians, of turns about
the world's x, then y, then z axis, all of them through a stated centre.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def rigid_matrix(parameters: NDArray[np.float64], centre_mm: NDArray[np.float64]) -> Matrix:
    """Matrix of six parameters.

    Parameters
    ----------
    parameters : (6,) float64
        Shifts in millimetres, angles in radians.
    centre_mm : (3,) float64
        Point that the turns leave where it is.

    Returns
    -------
    matrix : (4, 4) float64

    Examples
    --------
    >>> rigid_matrix(np.array([1.0, 0, 0, 0, 0, np.pi / 2]), np.zeros(3)).round(6)[0]
    array([ 0., -1.,  0.,  1.])
    """
    (cx, cy, cz), (sx, sy, sz) = np.cos(parameters[3:]), np.sin(parameters[3:])
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
        [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
        [-sy, sx * cy, cx * cy],
    ]
    matrix[:3, 3] = parameters[:3] + centre_mm - matrix[:3, :3] @ centre_mm
    return matrix


def rigid_parameters(matrix: Matrix, centre_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (6,) parameters of a rigid matrix, the reverse of `rigid_matrix` for turns about y of
    less than a quarter."""
    turn = matrix[:3, :3]
    shift = turn @ centre_mm + matrix[:3, 3] - centre_mm
    angles = (
        np.arctan2(turn[2, 1], turn[2, 2]),
        np.arctan2(-turn[2, 0], np.hypot(turn[2, 1], turn[2, 2])),
        np.arctan2(turn[1, 0], turn[0, 0]),
    )
    return np.concatenate([shift, angles])


def closest_turn(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (3, 3) rotation closest to a matrix, against the rounding of many products."""
    left, _, right = np.linalg.svd(matrix)
    return left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right


def source_matrix(
    volume_affine: Matrix, motion: Matrix, model_to_reference_world: Matrix
) -> Matrix:
    """Where the resample kernel finds the model's voxels in a moved volume: one interpolation.

    Parameters
    ----------
    volume_affine : (4, 4) float64
        Voxels of the volume to its world.
    motion : (4, 4) float64
        World of the run's reference to that of the volume, as `Alignment` holds it.
    model_to_reference_world : (4, 4) float64
        Voxels of the model grid to the world of the run's reference: the model's affine after the
        transform between bundle and reference, or the reference's affine after a resize.

    Returns
    -------
    model_to_source : (4, 4) float64
        Model voxels to voxels of the volume.
    """
    matrix = np.linalg.inv(volume_affine) @ motion @ model_to_reference_world
    matrix[3] = 0, 0, 0, 1  # exactly, as the kernel asks
    return matrix
