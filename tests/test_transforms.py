"""Transforms of ITK, FSL and AFNI beside SimpleITK and nitransforms."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.rigid import rigid_matrix
from scanside.runtime.realtime.transforms import Grid, read_transform

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of modules that nitransforms imports
    from nitransforms.io.afni import AFNILinearTransform
    from nitransforms.io.fsl import FSLLinearTransform

LPS = np.array([-1.0, -1.0, 1.0])
CENTRE = (11.0, -7.0, 23.0)


def grid(shape: tuple[int, int, int], axes: str, tilt: float = 0.0) -> Grid:
    """A grid of unequal voxels whose axes run as named, tilted by radians about two axes."""
    order = nib.orientations.axcodes2ornt(axes)
    turn = np.zeros((3, 3))
    for voxel_axis, (world_axis, direction) in enumerate(order):
        turn[int(world_axis), voxel_axis] = direction
    affine = np.eye(4)
    tilted = rigid_matrix(np.array([0, 0, 0, tilt, 0, tilt / 2]), np.zeros(3))[:3, :3]
    affine[:3, :3] = tilted @ turn * (2.0, 2.5, 3.5)
    affine[:3, 3] = (-40.0, 25.0, -31.0)
    return Grid(shape, affine)


def image(of: Grid) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.zeros(of.shape, np.uint8), of.affine)


def affine() -> np.ndarray:
    """A rigid motion with some scaling and shear, as flirt with 12 degrees of freedom finds."""
    matrix = rigid_matrix(np.array([4, -6, 9, 0.1, -0.2, 0.3]), np.array([5.0, 0, -8]))
    matrix[:3, :3] = matrix[:3, :3] @ [[1.05, 0.02, 0], [0, 0.96, -0.03], [0.01, 0, 1.02]]
    return matrix


def itk_transforms() -> dict[str, sitk.Transform]:
    euler = sitk.Euler3DTransform(CENTRE, 0.1, -0.2, 0.3, (4, 5, -6))
    other_order = sitk.Euler3DTransform(euler)
    other_order.SetComputeZYX(True)
    versor = sitk.VersorRigid3DTransform((0.3, -0.5, 0.8), 0.4, (1, 2, 3), CENTRE)
    turn = sitk.VersorTransform((0.3, -0.5, 0.8), 0.4, CENTRE)
    similar = sitk.Similarity3DTransform(1.1, (0.3, -0.5, 0.8), 0.4, (1, 2, 3), CENTRE)
    general = sitk.AffineTransform(affine()[:3, :3].ravel(), (4.0, 5, -6), CENTRE)
    shift = sitk.TranslationTransform(3, (4.0, 5, -6))
    return {
        "euler": euler,
        "euler zyx": other_order,
        "versor rigid": versor,
        "versor": turn,
        "similarity": similar,
        "affine": general,
        "translation": shift,
    }


def assert_itk(path: Path, transform: sitk.Transform) -> None:
    matrix = read_transform(path)
    for point in np.random.default_rng(0).uniform(-80, 80, (5, 3)):
        there = np.array(transform.TransformPoint((point * LPS).tolist())) * LPS
        assert matrix[:3, :3] @ point + matrix[:3, 3] == pytest.approx(there, abs=1e-4)


@pytest.mark.parametrize("suffix", [".txt", ".tfm", ".mat"])
@pytest.mark.parametrize("name", itk_transforms())
def test_itk_moves_points_as_simpleitk(name: str, suffix: str, tmp_path: Path):
    path = tmp_path / f"0GenericAffine{suffix}"
    transform = itk_transforms()[name]
    sitk.WriteTransform(transform, str(path))
    assert_itk(path, transform)


def test_several_transforms_of_itk_are_applied_from_the_last(tmp_path: Path):
    parts = itk_transforms()
    whole = sitk.CompositeTransform([parts["euler"], parts["affine"], parts["translation"]])
    sitk.WriteTransform(whole, str(tmp_path / "whole.tfm"))
    assert_itk(tmp_path / "whole.tfm", whole)


def test_single_precision_of_ants_is_read(tmp_path: Path):
    path = tmp_path / "ants.txt"
    sitk.WriteTransform(itk_transforms()["affine"], str(path))
    path.write_text(path.read_text().replace("_double_", "_float_"))
    assert_itk(path, itk_transforms()["affine"])


AXES = [("RAS", "RAS"), ("LAS", "RAS"), ("RAS", "LPI"), ("LPS", "PIR"), ("SAR", "LAS")]


@pytest.mark.parametrize("tilt", [0.0, 0.2])
@pytest.mark.parametrize("axes", AXES, ids="-".join)
def test_flirt_is_read_as_nitransforms_writes_it(
    axes: tuple[str, str], tilt: float, tmp_path: Path
):
    reference, moving = grid((20, 24, 18), axes[0], tilt), grid((22, 17, 30), axes[1], -tilt)
    path = tmp_path / "flirt.mat"
    written = FSLLinearTransform.from_ras(affine(), image(moving), image(reference))
    path.write_text(written.to_string())
    # the file holds six decimals
    assert read_transform(path, reference=reference, moving=moving) == pytest.approx(
        affine(), abs=2e-3
    )


def test_flirts_identity_lays_first_voxels_and_axes_together(tmp_path: Path):
    """By hand: two images whose first axes run to the left are compared voxel by voxel."""
    reference, moving = grid((20, 24, 18), "LAS"), grid((20, 24, 18), "LPI")
    path = tmp_path / "flirt.mat"
    path.write_text("1 0 0 0  \n0 1 0 0  \n0 0 1 0  \n0 0 0 1  \n")
    matrix = read_transform(path, reference=reference, moving=moving)
    voxel = np.array([3.0, 5, 7, 1])
    assert matrix @ reference.affine @ voxel == pytest.approx(moving.affine @ voxel)


@pytest.mark.parametrize("tilts", [(0.0, 0.0), (0.2, 0.0), (0.0, -0.3), (0.25, 0.1)], ids=str)
@pytest.mark.parametrize("axes", AXES, ids="-".join)
def test_afni_is_read_as_nitransforms_writes_it(
    axes: tuple[str, str], tilts: tuple[float, float], tmp_path: Path
):
    reference, moving = grid((20, 24, 18), axes[0], tilts[0]), grid((22, 17, 30), axes[1], tilts[1])
    path = tmp_path / "allineate.aff12.1D"
    written = AFNILinearTransform.from_ras(affine(), image(moving), image(reference))
    path.write_text(written.to_string())
    # the file holds six digits
    assert read_transform(path, reference=reference, moving=moving) == pytest.approx(
        affine(), abs=2e-3
    )


def test_afni_goes_from_base_to_source_in_lps(tmp_path: Path):
    """By hand: the source lies 5 mm further left and 2 mm further up than the base."""
    straight = grid((20, 24, 18), "RAS")
    path = tmp_path / "shift.aff12.1D"
    path.write_text("# 3dvolreg matrices (DICOM-to-DICOM, row-by-row):\n1 0 0 5 0 1 0 0 0 0 1 2\n")
    matrix = read_transform(path, reference=straight, moving=straight)
    assert matrix @ [0, 0, 0, 1] == pytest.approx([-5, 0, 2, 1])


BAD: list[tuple[str, str | Callable[[Path], object], str]] = [
    ("absent.mat", "", "absent.mat: cannot be read"),
    ("warp.h5", "x", "holds a warp; only rigid and affine"),
    ("notes.txt", "the quick brown fox", "is no transform of ITK, FSL or AFNI"),
    ("photo.mat", "\x00\x01\xff", "is no transform of ITK, FSL or AFNI"),
    ("flirt.mat", "1 0 0 0\n0 1 0 0\n0 0 1 0\n", "must hold one transform of 16 numbers; got 12"),
    ("flirt.mat", "0 0 0 0\n" * 3 + "0 0 0 1", "its matrix is singular"),
    ("flirt.mat", "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 1 1", "last row must be 0 0 0 1"),
    ("run.aff12.1D", "1 0 0 0 0 1 0 0 0 0 1 0\n" * 3, "one line for each volume is motion"),
    ("scale.1D", "1 0 0 0 0 nan 0 0 0 0 1 0", "singular or not finite"),
    (
        "itk.txt",
        "#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\n"
        "Parameters: 1 2 3\nFixedParameters: 0 0 0\n",
        "holds a BSplineTransform_double_3_3; expected one of AffineTransform",
    ),
    (
        "itk.txt",
        "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 2 3\nFixedParameters: 0 0 0\n",
        "has 12 parameters and a centre of 3; got 3 and 3",
    ),
    ("itk.txt", "#Insight Transform File V1.0\n", "without parameters"),
    (
        "itk.txt",
        "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 a\n",
        "is a damaged transform of ITK",
    ),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BAD, ids=lambda v: str(v)[:20])
def test_what_is_no_transform_is_refused(name: str, content: str, sentence: str, tmp_path: Path):
    path = tmp_path / name
    if content:
        path.write_bytes(content.encode("latin-1"))
    straight = grid((20, 24, 18), "RAS")
    with pytest.raises(InputError, match=sentence):
        read_transform(path, reference=straight, moving=straight)


def test_a_binary_transform_that_is_cut_off_is_refused(tmp_path: Path):
    path = tmp_path / "ants.mat"
    sitk.WriteTransform(itk_transforms()["affine"], str(path))
    whole = path.read_bytes()
    for length, sentence in ((100, "cut off"), (len(whole) - 40, "cut off|parameters and 'fixed'")):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=sentence):
            read_transform(path)


@pytest.mark.parametrize("name", ["flirt.mat", "base.aff12.1D"])
def test_a_matrix_that_needs_headers_says_so(name: str, tmp_path: Path):
    count = 12 if name.endswith("1D") else 16
    (tmp_path / name).write_text(" ".join(str(float(n % 5 == 0)) for n in range(count)))
    with pytest.raises(InputError, match="headers of both images"):
        read_transform(tmp_path / name)
