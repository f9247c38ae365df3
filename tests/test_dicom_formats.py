"""Enhanced and one-file-a-slice DICOM to frames: what dcm2niix and nibabel make of the same files.

A functional run of Siemens XA is in no package, so it is written here, and dcm2niix says whether
what was written is what was meant.
"""

import gzip
import subprocess
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from scanside.runtime.realtime.dicom_slices import SliceFile
from scanside.runtime.realtime.dicom_volume import read_dicom
from scanside.runtime.realtime.enhanced_writer import EnhancedWriter, enhanced_file
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.run_file import RunFile
from scanside.runtime.realtime.slice_gathering import SliceGathering
from scanside.runtime.realtime.slice_writer import SliceWriter
from scanside.runtime.realtime.source import Arrival, Fault, IncompleteVolume, UnreadableVolume
from scanside.runtime.realtime.volume_writer import WrittenVolume

SAMPLES = Path(nib.__file__).parent / "nicom/tests/data"
ENHANCED = ["siemens", "philips"]
CLASSIC = ["ge", "siemens", "philips"]


@pytest.fixture
def volumes(small_run: Callable[..., Path]) -> list[WrittenVolume]:
    run = RunFile(small_run(3))
    return [
        WrittenVolume(
            data=data,
            affine=run.affine,
            slope=1.0,
            inter=0.0,
            tr_s=1.6,
            number=number,
            series=5,
            acquired_s=1.6 * number,
        )
        for number, data in enumerate(run.read())
    ]


def canonical(data, affine, slope: float = 1.0, inter: float = 0.0):
    """Values and affine with all axes the way of RAS, so that the order of slices is no matter."""
    scaled = np.asarray(data, np.float64) * slope + inter
    image = nib.as_closest_canonical(nib.Nifti1Image(scaled, affine))
    return image.get_fdata(), image.affine


def assert_is(frame: Arrival, volume: WrittenVolume):
    assert isinstance(frame, Frame)
    ours, place = canonical(frame.data, frame.affine, frame.slope, frame.inter)
    theirs, truth = canonical(volume.data, volume.affine, volume.slope, volume.inter)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(place, truth, atol=1e-6)
    assert (frame.number, frame.tr_s) == (volume.number, volume.tr_s)


def converted(files: dict[str, bytes], folder: Path) -> list[nib.Nifti1Image]:
    """What dcm2niix makes of some files."""
    source, target = folder / "dicom", folder / "nifti"
    source.mkdir()
    target.mkdir()
    for name, raw in files.items():
        (source / name).write_bytes(raw)
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "volume", "-o", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return [nib.load(path) for path in sorted(target.glob("*.nii"))]


def assert_dcm2niix_agrees(frames: list[Frame], image: nib.Nifti1Image):
    values = image.get_fdata().reshape(*image.shape[:3], -1)
    assert values.shape[3] == len(frames)
    for index, frame in enumerate(frames):
        theirs, their_place = canonical(values[..., index], image.affine)
        ours, place = canonical(frame.data, frame.affine, frame.slope, frame.inter)
        # dcm2niix keeps places in float32 and rounds on the way: micrometres
        np.testing.assert_allclose(place, their_place, atol=1e-3)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def changed(raw: bytes, **values: object) -> bytes:
    """A file with other values in its header."""
    dataset = dcmread(BytesIO(raw))
    for name, value in values.items():
        setattr(dataset, name, value)
    return saved(dataset)


def saved(dataset: Dataset) -> bytes:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def gathered(files: list[bytes]) -> list[Arrival]:
    gathering, arrivals = SliceGathering(5.0), []
    for raw in files:
        came = read_dicom(raw, arrived_s=2.0)
        assert isinstance(came, SliceFile)
        arrivals += gathering.add(came, now_s=2.0)
    return arrivals + gathering.tick(100.0)


@pytest.mark.parametrize("maker", ENHANCED)
def test_an_enhanced_volume_is_read_as_dcm2niix_reads_it(maker, volumes, tmp_path: Path):
    raw = EnhancedWriter("run", maker).encode(volumes[2])
    (frame,) = read_dicom(raw, arrived_s=1.5)
    assert_is(frame, volumes[2])
    assert (frame.arrived_s, frame.series[:2]) == (1.5, "5-")
    (image,) = converted({"a.dcm": raw}, tmp_path)
    assert_dcm2niix_agrees([frame], image)


@pytest.mark.parametrize("maker", ENHANCED)
def test_a_file_of_several_volumes_is_as_many_frames(maker, volumes, tmp_path: Path):
    raw = enhanced_file("run", maker, volumes)
    frames = read_dicom(raw, arrived_s=0.0)
    assert len(frames) == 3
    for frame, volume in zip(frames, volumes, strict=True):
        assert_is(frame, volume)
    # imported late, for it warns at import and the reader above has heard that already
    from nibabel.nicom.dicomwrappers import wrapper_from_data

    theirs = wrapper_from_data(dcmread(BytesIO(raw))).get_unscaled_data()
    # (rows, columns, slices, time)
    for index, frame in enumerate(frames):
        # nibabel leaves slices in the order of their numbers, which here is down the normal
        np.testing.assert_array_equal(frame.data[:, :, ::-1], theirs[..., index].swapaxes(0, 1))
    if maker == "philips":  # dcm2niix does not sort what is not stored slice by slice
        (image,) = converted({"a.dcm": raw}, tmp_path)
        assert_dcm2niix_agrees(frames, image)


def test_a_real_enhanced_file_is_placed_as_dcm2niix_places_it(tmp_path: Path):
    raw = gzip.decompress((SAMPLES / "philips_mprage.dcm.gz").read_bytes())
    (frame,) = read_dicom(raw, arrived_s=0.0)
    assert frame.data.shape == (256, 256, 176)
    (image,) = converted({"a.dcm": raw}, tmp_path)
    # its pixels are all 0; small arrays stand for them, to be turned by the affines
    corners = np.zeros((2, 2, 2))
    ends = np.diag([*(np.array(frame.data.shape) - 1.0), 1.0])
    _, ours = canonical(corners, frame.affine @ ends)
    _, theirs = canonical(corners, image.affine @ np.diag([*(np.array(image.shape) - 1.0), 1.0]))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert sorted(image.shape) == sorted(frame.data.shape)


@pytest.mark.parametrize("maker", CLASSIC)
def test_slices_are_gathered_as_dcm2niix_gathers_them(maker, volumes, tmp_path: Path):
    writer = SliceWriter("run", maker)
    files = {f"{v.number}{end}": raw for v in volumes for end, raw in writer.parts(v)}
    frames = gathered(list(files.values()))
    assert len(frames) == 3
    for frame, volume in zip(frames, volumes, strict=True):
        assert_is(frame, volume)
    (image,) = converted(files, tmp_path)
    assert_dcm2niix_agrees(frames, image)


@pytest.mark.parametrize("maker", ENHANCED)
def test_scales_of_single_pictures_are_applied(maker, volumes):
    dataset = dcmread(BytesIO(EnhancedWriter("run", maker).encode(volumes[0])))
    for group in dataset.PerFrameFunctionalGroupsSequence:
        slices = group.FrameContentSequence[0].InStackPositionNumber
        group.PixelValueTransformationSequence[0].RescaleSlope = str(1 + slices)
    (frame,) = read_dicom(saved(dataset), arrived_s=0.0)
    assert (frame.data.dtype, frame.slope) == (np.float32, 1.0)
    scaled = volumes[0].data * np.arange(2.0, 7.0)
    assert_is(frame, replace(volumes[0], data=scaled))


def test_two_echoes_in_one_file_are_refused_by_name(volumes):
    dataset = dcmread(BytesIO(EnhancedWriter("run", "philips").encode(volumes[0])))
    dataset.PerFrameFunctionalGroupsSequence[3].MREchoSequence[0].EffectiveEchoTime = 60.0
    with pytest.raises(UnreadableVolume, match="several pictures of each place and time .echoes"):
        read_dicom(saved(dataset), arrived_s=0.0)


def test_two_echoes_in_one_series_of_slices_are_two_series(volumes):
    (_, raw), *_ = SliceWriter("run", "ge").parts(volumes[0])
    first = read_dicom(raw, arrived_s=0.0)
    second = read_dicom(changed(raw, EchoTime="60"), arrived_s=0.0)
    assert first.series != second.series


def test_an_enhanced_file_that_ends_early_is_a_smaller_frame(volumes):
    """A scan that is broken off leaves a legal file of the slices that it has."""
    fewer = replace(volumes[0], data=volumes[0].data[:, :, :2])
    (frame,) = read_dicom(EnhancedWriter("run", "siemens").encode(fewer), arrived_s=0.0)
    assert isinstance(frame, Frame)
    assert frame.data.shape == (7, 6, 2)


def test_a_slice_that_is_missing_between_others_is_told(volumes):
    dataset = dcmread(BytesIO(EnhancedWriter("run", "philips").encode(volumes[1])))
    del dataset.PerFrameFunctionalGroupsSequence[2]
    dataset.NumberOfFrames = 4
    (fault,) = read_dicom(saved(dataset), arrived_s=0.0)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.number) == ("short", 1)
    assert "1 slices are missing between its 4" in fault.detail


@pytest.mark.parametrize("writer", [EnhancedWriter, SliceWriter])
def test_pixels_that_are_cut_off_are_incomplete_and_numbered(writer, volumes):
    (_, raw), *_ = writer("run", "siemens").parts(volumes[2])
    for length in [0, 100, 131, 133, 700, len(raw) - 30, len(raw) - 2]:
        with pytest.raises(IncompleteVolume) as cut:
            read_dicom(raw[:length], arrived_s=0.0)
    assert cut.value.number == 2
    assert cut.value.series == getattr(read_dicom(raw, arrived_s=0.0), "series", cut.value.series)


def test_pixels_that_can_be_decoded_are(volumes):
    raw = EnhancedWriter("run", "siemens").encode(volumes[0])
    dataset = dcmread(BytesIO(raw))
    dataset.compress(RLELossless)
    (frame,) = read_dicom(saved(dataset), arrived_s=0.0)
    assert_is(frame, volumes[0])


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "pyjpegls"),
        ("JPEG-LL.dcm", "pylibjpeg pylibjpeg-libjpeg"),
        ("HTJ2K.dcm", "pylibjpeg pylibjpeg-openjpeg"),
    ],
)
def test_pixels_without_a_decoder_are_refused_with_the_package(
    name: str, package: str, volumes, monkeypatch: pytest.MonkeyPatch
):
    from scanside.runtime.realtime import dicom_file

    syntaxes = {
        "JPEG-LL.dcm": "1.2.840.10008.1.2.4.70",
        "HTJ2K.dcm": "1.2.840.10008.1.2.4.201",
        "MR_small_jpeg_ls_lossless.dcm": "1.2.840.10008.1.2.4.80",
    }
    path = get_testdata_file(name) if name.startswith("MR") else None
    assert path is None or dcmread(path).file_meta.TransferSyntaxUID == syntaxes[name]
    dataset = dcmread(BytesIO(SliceWriter("run", "ge").parts(volumes[0])[0][1]))
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = syntaxes[name]

    class Unavailable:
        is_available = False

    monkeypatch.setattr(dicom_file, "get_decoder", lambda _: Unavailable())
    file = BytesIO()
    dataset.save_as(file)
    with pytest.raises(UnreadableVolume, match=f"no decoder.*'pip install {package}'"):
        read_dicom(file.getvalue(), arrived_s=0.0)


def test_a_deflated_file_is_refused_before_it_is_inflated():
    path = get_testdata_file("image_dfl.dcm")
    with pytest.raises(UnreadableVolume, match="deflated DICOM; export it uncompressed"):
        read_dicom(Path(str(path)).read_bytes(), arrived_s=0.0)


@pytest.mark.parametrize("name", ["MR_small.dcm", "CT_small.dcm", "MR_truncated.dcm", "rtplan.dcm"])
def test_other_dicoms_are_an_answer_never_a_crash(name: str):
    with pytest.raises((UnreadableVolume, IncompleteVolume)):
        read_dicom(Path(str(get_testdata_file(name))).read_bytes(), arrived_s=0.0)


@pytest.mark.parametrize("maker", ENHANCED)
def test_damaged_enhanced_bytes_are_an_answer_never_a_crash(maker, volumes):
    raw = EnhancedWriter("run", maker).encode(volumes[0])
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(raw)
        for place in rng.integers(0, len(raw), 4):
            damaged[place] = rng.integers(256)
        try:
            assert read_dicom(bytes(damaged), arrived_s=0.0)
        except (IncompleteVolume, UnreadableVolume):
            pass
