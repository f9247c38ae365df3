"""Reading volumes: what is stored is what arrives, and what cannot be used is refused in a
sentence."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scanside.runtime.errors import InputError
from scanside.runtime.volume import load_volume

AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])


def random_data(shape: tuple[int, ...] = (9, 10, 11)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def saved(path: Path, data: np.ndarray, slope: float | None = None, inter: float = 0) -> Path:
    image = nib.Nifti1Image(data, AFFINE)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_a_file_arrives_as_it_is_stored(tmp_path: Path, suffix: str, dtype: str):
    data = (np.abs(random_data()) * 100).astype(dtype)
    volume = load_volume(saved(tmp_path / f"a{suffix}", data))
    assert volume.data.dtype == dtype
    assert (volume.data == data).all()
    assert (volume.affine == AFFINE).all()
    assert (volume.slope, volume.inter) == (1, 0)


def test_integers_keep_their_slope_and_intercept_beside_them(tmp_path: Path):
    path = saved(tmp_path / "a.nii.gz", (random_data() * 300).astype(np.int16), 1 / 300, 0.25)
    volume = load_volume(path)
    assert volume.data.dtype == np.int16
    real = volume.data * volume.slope + volume.inter
    assert real == pytest.approx(nib.load(path).get_fdata(), abs=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "float64", ">i2", ">f4"])
def test_other_stored_types_arrive_as_one_that_the_kernel_reads(tmp_path: Path, dtype: str):
    data = (np.abs(random_data()) * 30).round().astype(dtype)
    volume = load_volume(saved(tmp_path / "a.nii", data))
    assert volume.data.dtype.name in ("int16", "float32")
    assert volume.data.dtype.isnative
    assert (volume.data == data).all()


def test_a_nibabel_image_in_memory_and_an_array_are_volumes_too():
    data = random_data()
    for source in (nib.Nifti1Image(data, AFFINE), (data, AFFINE), (data, AFFINE.tolist())):
        volume = load_volume(source)
        assert (volume.data == data).all()
        assert (volume.affine == AFFINE).all()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_an_index_picks_one_volume_of_a_4d_file(tmp_path: Path, suffix: str):
    data = (random_data((6, 7, 8, 5)) * 100).astype(np.int16)
    path = saved(tmp_path / f"a{suffix}", data, 0.5, 1)
    volume = load_volume(path, 3)
    assert (volume.data == data[..., 3]).all()
    assert (volume.slope, volume.inter) == (0.5, 1)
    assert (load_volume((data, AFFINE), 4).data == data[..., 4]).all()


def test_a_4d_file_with_one_volume_needs_no_index(tmp_path: Path):
    data = random_data((6, 7, 8, 1))
    assert load_volume(saved(tmp_path / "a.nii", data)).data.shape == (6, 7, 8)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (None, "holds 5 volumes; say which by its index, 0 to 4"),
        (5, "has no volume 5; it holds 5, so the index is 0 to 4"),
        (-1, "has no volume -1"),
    ],
)
def test_a_missing_or_outside_index_is_refused(tmp_path: Path, index: int | None, sentence: str):
    path = saved(tmp_path / "a.nii", random_data((4, 4, 4, 5)))
    with pytest.raises(InputError, match=sentence):
        load_volume(path, index)


def test_an_index_beyond_a_3d_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="has no volume 1; it holds 1"):
        load_volume(saved(tmp_path / "a.nii", random_data()), 1)


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 5, 2, 2), (5, 0, 5)])
def test_a_wrong_number_of_dimensions_is_refused(shape: tuple[int, ...]):
    with pytest.raises(InputError, match=r"has shape .*; expected \(X, Y, Z\)"):
        load_volume((np.ones(shape, np.float32), AFFINE))


def test_no_such_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"absent.nii: no such file"):
        load_volume(tmp_path / "absent.nii")


def test_a_folder_is_no_volume(tmp_path: Path):
    with pytest.raises(InputError, match="is a folder; expected a NIfTI file"):
        load_volume(tmp_path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.txt", "noname"])
def test_a_file_that_is_not_nifti(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"not a brain " * 100)
    with pytest.raises(InputError, match="is not a NIfTI file"):
        load_volume(tmp_path / name)


def test_another_format_is_named(tmp_path: Path):
    nib.save(nib.MGHImage(random_data(), AFFINE), tmp_path / "a.mgz")
    with pytest.raises(InputError, match="is not NIfTI but MGHImage"):
        load_volume(tmp_path / "a.mgz")


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file(tmp_path: Path, suffix: str, kept: float):
    path = saved(tmp_path / f"a{suffix}", random_data((20, 20, 20)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match="truncated|cut off"):
        load_volume(path)


def test_an_image_whose_file_is_cut_off_after_it_was_opened(tmp_path: Path):
    path = saved(tmp_path / "a.nii", random_data((20, 20, 20)))
    image = nib.load(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="volume is truncated"):
        load_volume(image)
    path.unlink()
    with pytest.raises(InputError, match="is gone"):
        load_volume(image)


def test_a_gzip_file_that_lacks_only_its_checksum(tmp_path: Path):
    path = saved(tmp_path / "a.nii.gz", random_data())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_volume(path)


def test_a_gzip_file_with_a_flipped_bit(tmp_path: Path):
    path = saved(tmp_path / "a.nii.gz", random_data((20, 20, 20)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match="truncated or damaged"):
        load_volume(path)


@pytest.mark.parametrize(("offset", "content"), [(70, b"\xff\x00"), (116, b"\x00\x00\xc0\x7f")])
def test_a_header_that_makes_no_sense(tmp_path: Path, offset: int, content: bytes):
    """An unknown data type; an intercept that is NaN."""
    path = saved(tmp_path / "trial.nii", random_data(), slope=2, inter=1)
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(raw)
    with pytest.raises(InputError, match="its header is damaged"):
        load_volume(path)


def test_all_zero():
    with pytest.raises(InputError, match="is all zero: every one of its 27 voxels is 0"):
        load_volume((np.zeros((3, 3, 3), np.int16), AFFINE))


def test_voxels_that_are_not_finite_are_counted(tmp_path: Path):
    data = random_data()
    data[0, 0, :3], data[1, 1, :2] = np.nan, np.inf
    with pytest.raises(InputError, match="a.nii has 3 NaN and 2 infinite voxels of 990"):
        load_volume(saved(tmp_path / "a.nii", data))


def test_a_header_without_orientation(tmp_path: Path):
    nib.save(nib.Nifti1Image(random_data(), None), tmp_path / "a.nii")
    with pytest.raises(InputError, match="orientation is unknown, for qform_code and sform_code"):
        load_volume(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (np.ones((3, 3, 3)), r"without its affine; pass the pair \(array, affine\)"),
        (7, "must be a path, a nibabel image or a pair .* got int"),
        ((np.ones((3, 3, 3)), np.eye(3)), "affine must be a finite 4x4 matrix"),
        ((np.ones((3, 3, 3)), np.zeros((4, 4))), "affine is singular"),
        ((np.ones((3, 3, 3), complex), AFFINE), "holds complex128 values"),
    ],
)
def test_what_is_no_volume(source: object, sentence: str):
    with pytest.raises(InputError, match=sentence):
        load_volume(source)
