"""Transforms between two images as other tools write them, brought to one convention.

    matrix @ (point of the reference) = (point of the moving image)

in world millimetres, right-anterior-superior, as nibabel's affines give them. The reference is the
image whose grid was kept when the transform was made (ITK: fixed, FSL: -ref, AFNI: -base), the
moving one was brought to it. This is the direction in which a resample reads, and what `Alignment`
holds.

| tool | file | maps | axes |
|---|---|---|---|
| ITK, ANTs | `.txt`, `.tfm`, `.mat` (binary) | reference to moving | left, posterior, superior |
| FSL flirt | `.mat` (4x4 text) | moving to reference | millimetres from the first voxel |
| AFNI | `.aff12.1D` | reference to moving | left, posterior, superior |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .transforms_itk import LPS, is_itk, read_itk

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where an image lies, which some formats leave to its header."""

    shape: tuple[int, int, int]
    affine: Matrix
    """(4, 4) voxel to world."""


def read_transform(
    path: Path, *, reference: Grid | None = None, moving: Grid | None = None
) -> Matrix:
    """Read a rigid or affine transform, whichever tool wrote it.

    Parameters
    ----------
    path : path
    reference, moving : Grid, optional
        The two images. FSL's and AFNI's matrices need both: FSL counts from the first voxel, and
        AFNI sets oblique images straight first.

    Returns
    -------
    matrix : (4, 4) float64
        Reference world to moving world.

    Raises
    ------
    InputError
        No such file, an unknown or damaged one, one that holds no affine, or a header that is
        needed and missing.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    name = path.name
    if name.endswith((".h5", ".nii", ".nii.gz")):
        raise InputError(
            f"{name} holds a warp; only rigid and affine transforms fit into the resample kernel: "
            "pass the affine part by itself"
        )
    if is_itk(content):
        matrix = read_itk(content, name)
    else:
        afni = name.endswith(".1D")
        numbers = _numbers(content, name, 12 if afni else 16)
        if reference is None or moving is None:
            raise InputError(
                f"{name}: a matrix of {'AFNI' if afni else 'FSL'} says where points go only "
                "together with the headers of both images; pass the one that was kept and the one "
                f"that was moved ({'-base and -source' if afni else '-ref and -in'})"
            )
        if afni:
            matrix = _afni(numbers, reference, moving)
        else:
            matrix = _fsl(numbers, reference, moving, name)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-6:
        raise InputError(f"{name}: its matrix is singular or not finite:\n{matrix}")
    return matrix


def fsl_voxel_mm(grid: Grid) -> Matrix:
    """Voxels to FSL's millimetres: from the first voxel on, the first axis to the left."""
    edges = np.linalg.norm(grid.affine[:3, :3], axis=0)
    matrix = np.diag([*edges, 1.0])
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        matrix[0, 0], matrix[0, 3] = -edges[0], (grid.shape[0] - 1) * edges[0]
    return matrix


def afni_plumb(grid: Grid) -> Matrix:
    """World to the world in which AFNI sees an oblique image: axes set straight about its origin.

    For an image along the scanner's axes this is no change.
    """
    import nibabel as nib

    affine = grid.affine
    axes = nib.orientations.io_orientation(affine)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    straight = np.eye(4)
    straight[:3, :3] = 0
    for voxel_axis, (world_axis, direction) in enumerate(axes):
        straight[int(world_axis), voxel_axis] = direction * edges[voxel_axis]
    straight[:3, 3] = affine[:3, 3]
    if np.allclose(straight, affine, atol=1e-4):
        return np.eye(4)
    return straight @ np.linalg.inv(affine)


def _fsl(numbers: Matrix, reference: Grid, moving: Grid, name: str) -> Matrix:
    moving_to_reference = numbers.reshape(4, 4)
    if not np.allclose(moving_to_reference[3], (0, 0, 0, 1)):
        raise InputError(f"{name}: its last row must be 0 0 0 1; got {moving_to_reference[3]}")
    try:
        reference_to_moving = np.linalg.inv(moving_to_reference)
    except np.linalg.LinAlgError as exc:
        raise InputError(f"{name}: its matrix is singular") from exc
    world_to_fsl = fsl_voxel_mm(reference) @ np.linalg.inv(reference.affine)
    fsl_to_world = moving.affine @ np.linalg.inv(fsl_voxel_mm(moving))
    return fsl_to_world @ reference_to_moving @ world_to_fsl


def _afni(numbers: Matrix, reference: Grid, moving: Grid) -> Matrix:
    matrix = LPS @ np.vstack([numbers.reshape(3, 4), [0, 0, 0, 1]]) @ LPS
    return np.linalg.inv(afni_plumb(moving)) @ matrix @ afni_plumb(reference)


def _numbers(content: bytes, name: str, count: int) -> Matrix:
    try:
        lines = content.decode("ascii").splitlines()
        numbers = [float(word) for line in lines for word in line.split("#")[0].split()]
    except ValueError as exc:
        raise InputError(
            f"{name} is no transform of ITK, FSL or AFNI; expected .txt, .tfm or .mat of ITK, .mat "
            f"of flirt, or .aff12.1D ({exc})"
        ) from exc
    if len(numbers) != count:
        raise InputError(
            f"{name} must hold one transform of {count} numbers; got {len(numbers)} (a file of one "
            "line for each volume is motion, not the transform between two images)"
        )
    return np.array(numbers)
