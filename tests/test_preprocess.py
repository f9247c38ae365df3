"""From a volume's place in the world to tokens."""

import itertools
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from scanside.runtime.bundle import Bundle
from scanside.runtime.errors import BundleError, InputError
from scanside.runtime.preprocess import Preprocessor
from scanside.runtime.volume import load_volume

ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for codes in itertools.product(*axes)
]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def preprocessor(bundle: Bundle, scale: float = 1.0, **geometry: object) -> Preprocessor:
    spec = bundle.manifest.encoder
    spec = replace(spec, geometry=replace(spec.geometry, **geometry))
    return Preprocessor(spec, bundle.arrays(spec.arrays), scale)


def reoriented(data: np.ndarray, affine: np.ndarray, axcodes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same brain stored with other axes."""
    turn = ornt_transform(nib.io_orientation(affine), axcodes2ornt(tuple(axcodes)))
    return apply_orientation(data, turn), affine @ inv_ornt_aff(turn, data.shape)


@pytest.fixture(scope="module")
def brain(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """A volume over the model's world box, with a shape, spacing and oblique axes of its own."""
    affine = np.array([[7, 0.3, 0, -66], [-0.2, 8, 0.1, -92], [0, 0, 6.5, -61], [0, 0, 0, 1.0]])
    return np.random.default_rng(0).normal(size=(19, 23, 22)).astype(np.float32), affine


def test_golden_volume_gives_the_golden_tokens(bundle: Bundle):
    golden = bundle.manifest.golden
    tokens = preprocessor(bundle).tokens(load_volume(bundle.path(golden.volume)))
    # made at export by torch's interpolate, in float32
    assert tokens == pytest.approx(bundle.arrays(golden.outputs)["tokens"][0], abs=1e-4)


def test_only_numbers_of_the_encoder_are_kept_of_each_element():
    bundle = Bundle.open("reference")  # large enough that nothing else counts
    elements = int(np.prod(bundle.manifest.encoder.inputs["tokens"].shape))
    preprocessor(bundle)  # what is imported and remembered once does not count
    tracemalloc.start()
    make = preprocessor(bundle)
    tokens = make.tokens(load_volume(bundle.path(bundle.manifest.golden.volume)))
    held = tracemalloc.get_traced_memory()[0] - tokens.nbytes
    tracemalloc.stop()
    # mean and inv_std in float32 and two masks; where an element lies would be 24 bytes more
    assert held < 12 * elements


@pytest.mark.parametrize("mapping", ["resize", "affine"])
def test_all_48_orientations_of_one_brain_give_the_same_tokens(
    bundle: Bundle, brain: tuple[np.ndarray, np.ndarray], mapping: str
):
    assert len(ORIENTATIONS) == 48
    make = preprocessor(bundle, mapping=mapping)
    expected = make.tokens(load_volume(brain))
    assert np.abs(expected).max() > 0.1
    for axcodes in ORIENTATIONS:
        tokens = make.tokens(load_volume(reoriented(*brain, axcodes)))
        assert tokens == pytest.approx(expected, abs=1e-5), axcodes


def test_resize_ignores_where_the_brain_lies_and_affine_does_not(
    bundle: Bundle, brain: tuple[np.ndarray, np.ndarray]
):
    data, affine = brain
    moved = affine + np.array([[0, 0, 0, 9.0]] * 3 + [[0, 0, 0, 0]])
    resize, by_world = (preprocessor(bundle, mapping=m) for m in ("resize", "affine"))
    a, b = load_volume((data, affine)), load_volume((data, moved))
    assert (resize.tokens(a) == resize.tokens(b)).all()
    assert np.abs(by_world.tokens(a) - by_world.tokens(b)).max() > 0.1


def test_affine_mapping_reads_the_value_at_the_same_millimetre(bundle: Bundle):
    """A volume whose value is its world coordinate: the token of a voxel is where that voxel
    lies."""
    make = preprocessor(bundle, mapping="affine")
    affine = np.diag([5.0, 5, 5, 1])
    affine[:3, 3] = -120
    voxels = np.stack(np.meshgrid(*[np.arange(50)] * 3, indexing="ij"), -1)
    for axis in range(3):
        data = (voxels[..., axis] * 5 - 120.0).astype(np.float32)
        tokens = make.tokens(load_volume((data, affine)), normalised=False)
        world = nib.affines.apply_affine(
            np.array(bundle.manifest.encoder.geometry.affine), make.geometry.voxels
        )
        inside = make.geometry.in_grid
        assert tokens[inside] == pytest.approx(world[..., axis][inside], abs=1e-3)


def test_scale_slope_and_intercept_are_each_applied_once(
    bundle: Bundle, brain: tuple[np.ndarray, np.ndarray], tmp_path: Path
):
    data, affine = brain
    stored = (data * 3000).round().astype(np.int16)
    image = nib.Nifti1Image(stored, affine)
    image.header.set_slope_inter(0.02, 5)
    nib.save(image, tmp_path / "a.nii.gz")
    raw = preprocessor(bundle, scale=1 / 300).tokens(
        load_volume(tmp_path / "a.nii.gz"), normalised=False
    )
    plain = preprocessor(bundle).tokens(
        load_volume((stored / np.float32(1), affine)), normalised=False
    )
    expected = np.where(preprocessor(bundle).geometry.in_grid, (plain * 0.02 + 5) / 300, 0)
    assert raw == pytest.approx(expected, abs=1e-4)


def test_a_field_of_view_beside_the_model_grid_is_refused(
    bundle: Bundle, brain: tuple[np.ndarray, np.ndarray]
):
    data, affine = brain
    far = affine.copy()
    far[0, 3] += 1000
    sentence = r"field of view, centred at \(1000, .*\) mm, does not overlap"
    for mapping in ("resize", "affine"):
        with pytest.raises(InputError, match=sentence):
            preprocessor(bundle, mapping=mapping).tokens(load_volume((data, far)))


def test_arrays_that_do_not_fit_the_geometry_are_refused(bundle: Bundle):
    spec = bundle.manifest.encoder
    arrays = bundle.arrays(spec.arrays)
    with pytest.raises(BundleError, match="encoder.npz lacks mean"):
        Preprocessor(spec, {k: v for k, v in arrays.items() if k != "mean"}, 1.0)
    with pytest.raises(
        BundleError, match=r"makes tokens of shape \(11, 216\), .* takes \(12, 216\)"
    ):
        Preprocessor(spec, arrays | {"active": arrays["active"][1:]}, 1.0)
    with pytest.raises(BundleError, match="axcodes must be like RAS or SAR; got 'SAX'"):
        preprocessor(bundle, axcodes="SAX")


def test_values_that_overflow_are_refused(bundle: Bundle, tiny_bundle: Path):
    volume = load_volume(tiny_bundle / "golden" / "volume.nii.gz")
    with pytest.raises(InputError, match="its values become infinite with slope 1e"):
        preprocessor(bundle).tokens(replace(volume, slope=1e39))
