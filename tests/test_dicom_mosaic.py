"""Siemens mosaics to frames: nibabel's real ones, replayed ones, and damaged ones."""

import gzip
import re
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000

from scanside.runtime.realtime.dicom_mosaic import read_mosaic
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.mosaic_writer import MosaicWriter
from scanside.runtime.realtime.run_file import RunFile
from scanside.runtime.realtime.source import IncompleteVolume, UnreadableVolume
from scanside.runtime.realtime.volume_writer import WrittenVolume

SAMPLES = Path(nib.__file__).parent / "nicom/tests/data"
REAL = ["siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz"]


def sample(name: str) -> bytes:
    return gzip.decompress((SAMPLES / name).read_bytes())


def written(run: RunFile, **changes: object) -> WrittenVolume:
    values = {
        "data": next(run.read()),
        "affine": run.affine,
        "slope": 1.0,
        "inter": 0.0,
        "tr_s": 1.6,
        "number": 4,
        "series": 5,
        "acquired_s": 6.4,
    }
    return WrittenVolume(**{**values, **changes})


def converted(raw: bytes, folder: Path) -> nib.Nifti1Image:
    """What dcm2niix makes of a file."""
    source, target = folder / "dicom", folder / "nifti"
    source.mkdir()
    target.mkdir()
    (source / "volume.dcm").write_bytes(raw)
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "volume", "-o", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return nib.load(target / "volume.nii")


def assert_same_volume(frame: Frame, image: nib.Nifti1Image):
    """The same values at the same places, whichever way the axes run."""
    ours = nib.as_closest_canonical(nib.Nifti1Image(frame.data.astype("f4"), frame.affine))
    theirs = nib.as_closest_canonical(image)
    # dcm2niix keeps places in float32 and rounds on the way: micrometres
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
    scaled = ours.get_fdata() * frame.slope + frame.inter
    np.testing.assert_allclose(scaled, theirs.get_fdata(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", REAL)
def test_a_real_mosaic_is_read_as_dcm2niix_reads_it(name: str, tmp_path: Path):
    raw = sample(name)
    frame = read_mosaic(raw, arrived_s=1.5)
    assert (frame.data.shape, frame.data.dtype) == ((128, 128, 48), np.uint16)
    assert (frame.number, frame.tr_s, frame.arrived_s) == (REAL.index(name), 6.6, 1.5)
    assert_same_volume(frame, converted(raw, tmp_path))


def test_two_volumes_of_a_series_have_its_identity_and_the_scanners_clock():
    first, second = (read_mosaic(sample(name), arrived_s=0.0) for name in REAL)
    assert first.series == second.series
    assert first.series.startswith("12-")
    assert first.acquired_s is not None
    assert second.acquired_s is not None
    assert second.acquired_s - first.acquired_s == pytest.approx(6.6, abs=0.1)


def test_a_replayed_mosaic_is_what_was_played(small_run: Callable[..., Path], tmp_path: Path):
    run = RunFile(small_run())
    volume = written(run)
    raw = MosaicWriter("run").encode(volume)
    frame = read_mosaic(raw, arrived_s=0.0)
    np.testing.assert_array_equal(frame.data, volume.data)
    np.testing.assert_allclose(frame.affine, volume.affine, atol=1e-6)
    assert (frame.number, frame.tr_s, frame.series[:2]) == (4, 1.6, "5-")
    assert frame.acquired_s == pytest.approx(12 * 3600 + 6.4)
    assert_same_volume(frame, converted(raw, tmp_path))


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_every_handedness_survives(small_run: Callable[..., Path], flip: tuple[int, ...]):
    run = RunFile(small_run())
    affine = run.affine @ np.diag([*flip, 1.0])
    frame = read_mosaic(MosaicWriter("run").encode(written(run, affine=affine)), arrived_s=0.0)
    np.testing.assert_allclose(frame.affine, affine, atol=1e-6)


def test_real_numbers_are_cut_into_65535_steps(small_run: Callable[..., Path]):
    run = RunFile(small_run())
    data = np.random.default_rng(0).normal(0, 300, run.shape).astype("f4")
    raw = MosaicWriter("run").encode(written(run, data=data, slope=2.0, inter=5.0))
    frame = read_mosaic(raw, arrived_s=0.0)
    half_a_step = 2.0 * (data.max() - data.min()) / 65535 / 2
    difference = np.abs(frame.data * frame.slope + frame.inter - (data * 2.0 + 5.0)).max()
    assert 0 < difference < 1.01 * half_a_step


def test_axes_that_are_not_at_right_angles_are_refused(small_run: Callable[..., Path]):
    run = RunFile(small_run())
    sheared = run.affine @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(ValueError, match="not at right angles"):
        MosaicWriter("run").encode(written(run, affine=sheared))


def test_a_file_cut_anywhere_is_incomplete(small_run: Callable[..., Path]):
    raw = MosaicWriter("run").encode(written(RunFile(small_run())))
    for length in [*range(0, len(raw), 13), len(raw) - 2]:
        with pytest.raises(IncompleteVolume):
            read_mosaic(raw[:length], arrived_s=0.0)
    with pytest.raises(IncompleteVolume) as cut:
        read_mosaic(raw[:-2], arrived_s=0.0)
    assert cut.value.number == 4


def test_other_dicoms_are_refused_by_name():
    with pytest.raises(UnreadableVolume, match="no Siemens mosaic"):
        read_mosaic(sample("philips_mprage.dcm.gz"), arrived_s=0.0)


def test_compressed_pixels_are_refused_by_name(small_run: Callable[..., Path]):
    dataset = dcmread(BytesIO(MosaicWriter("run").encode(written(RunFile(small_run())))))
    dataset.file_meta.TransferSyntaxUID = JPEG2000
    dataset.PixelData = encapsulate([b"anything"])
    dataset["PixelData"].is_undefined_length = True
    file = BytesIO()
    dataset.save_as(file)
    with pytest.raises(
        UnreadableVolume, match="compressed .JPEG 2000 .*; export them uncompressed"
    ):
        read_mosaic(file.getvalue(), arrived_s=0.0)


def test_no_patient_field_gets_into_a_frame(small_run: Callable[..., Path]):
    dataset = dcmread(BytesIO(MosaicWriter("run").encode(written(RunFile(small_run())))))
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "MRN-4711"
    file = BytesIO()
    dataset.save_as(file)
    frame = read_mosaic(file.getvalue(), arrived_s=0.0)
    held = " ".join(repr(getattr(frame, name)) for name in frame.__dataclass_fields__)
    assert not {"Doe", "Jane", "4711", str(dataset.SeriesInstanceUID)} & set(re.split(r"\W", held))
    assert str(dataset.SeriesInstanceUID) not in held


def test_damaged_bytes_are_an_answer_never_a_crash(small_run: Callable[..., Path]):
    raw = MosaicWriter("run").encode(written(RunFile(small_run())))
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(raw)
        for place in rng.integers(0, len(raw), 4):
            damaged[place] = rng.integers(256)
        try:
            assert read_mosaic(bytes(damaged), arrived_s=0.0).data.ndim == 3
        except (IncompleteVolume, UnreadableVolume):
            pass
