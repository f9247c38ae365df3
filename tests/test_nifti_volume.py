"""One NIfTI file to one frame: plain, compressed, swapped, cut off, damaged."""

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.nifti_volume import read_nifti
from scanside.runtime.realtime.source import IncompleteVolume, UnreadableVolume
from scanside.runtime.realtime.volume_writer import NiftiWriter, WrittenVolume

AFFINE = np.array([[-2.0, 0, 0, 9], [0, 2.5, 0.1, -8], [0, -0.1, 3.0, 7], [0, 0, 0, 1]])
DATA = np.random.default_rng(0).integers(-900, 900, (7, 6, 5)).astype("i2")


def read(raw: bytes) -> Frame:
    return read_nifti(raw, number=3, series="s", arrived_s=2.0)


def encoded(image: Any = None, header: dict[str, Any] | None = None) -> bytes:
    image = image or nib.Nifti1Image(DATA, AFFINE)
    image.header.set_xyzt_units("mm", "msec")
    raw = bytearray(image.to_bytes())
    for key, value in (header or {}).items():  # nibabel itself would write nothing damaged
        dtype, offset = nib.Nifti1Header.template_dtype.fields[key][:2]
        packed = np.array(value, dtype.base).tobytes()
        raw[offset : offset + len(packed)] = packed
    return bytes(raw)


@pytest.mark.parametrize("dtype", ["i2", "u2", "f4", "u1", ">i2", ">f4"])
def test_values_and_place_are_those_of_the_file(dtype: str):
    data = np.abs(DATA) % 200
    frame = read(encoded(nib.Nifti1Image(data.astype(dtype), AFFINE)))
    assert frame.data.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(frame.data, data)
    np.testing.assert_allclose(frame.affine, AFFINE, atol=1e-6)
    assert (frame.number, frame.series, frame.arrived_s) == (3, "s", 2.0)


def test_plain_values_are_a_view_of_the_file():
    raw = encoded()
    assert np.shares_memory(read(raw).data, np.frombuffer(raw, np.uint8))


def test_gzip_and_nifti_2():
    np.testing.assert_array_equal(read(gzip.compress(encoded())).data, DATA)
    np.testing.assert_array_equal(read(encoded(nib.Nifti2Image(DATA, AFFINE))).data, DATA)
    one_volume = nib.Nifti1Image(DATA[..., None], AFFINE)
    np.testing.assert_array_equal(read(encoded(one_volume)).data, DATA)


def test_scale_and_times_come_with_their_units():
    volume = WrittenVolume(
        data=DATA,
        affine=AFFINE,
        slope=0.5,
        inter=-3.0,
        tr_s=1.6,
        number=3,
        series=5,
        acquired_s=4.8,
    )
    for compressed in (False, True):
        frame = read(NiftiWriter(compressed).encode(volume))
        assert (frame.slope, frame.inter) == (0.5, -3.0)
        assert frame.tr_s == pytest.approx(1.6)
        assert frame.acquired_s == pytest.approx(4.8)
        np.testing.assert_array_equal(frame.data, DATA)
    in_ms = encoded(header={"pixdim": [1, 2, 2.5, 3, 1600, 0, 0, 0], "toffset": 4800.0})
    assert read(in_ms).tr_s == pytest.approx(1.6)
    assert read(in_ms).acquired_s == pytest.approx(4.8)
    assert read(encoded(header={"toffset": 0.0})).acquired_s is None


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_file_cut_anywhere_is_incomplete(pack: Any):
    raw = pack(encoded())
    for length in [*range(0, len(raw), 7), len(raw) - 1]:
        with pytest.raises(IncompleteVolume):
            read(raw[:length])


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (bytes(500), "not a single-file NIfTI"),
        (encoded(nib.Nifti1Image(np.zeros((2, 2, 2, 3), "i2"), AFFINE)), "not one volume"),
        (encoded(nib.Nifti1Image(DATA.astype("c8"), AFFINE)), "complex64"),
        (encoded(header={"sform_code": 0, "qform_code": 0}), "orientation unknown"),
        (encoded(header={"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}), "more than any volume"),
        (b"\x1f\x8b" + bytes(500), "damaged gzip"),
    ],
)
def test_what_is_no_volume_is_refused_by_name(raw: bytes, sentence: str):
    with pytest.raises(UnreadableVolume, match=sentence):
        read(raw)


def test_a_small_file_cannot_ask_for_much_memory(monkeypatch: pytest.MonkeyPatch):
    from scanside.runtime.realtime import nifti_volume

    monkeypatch.setattr(nifti_volume, "_MAX_BYTES", 1 << 16)
    with pytest.raises(UnreadableVolume, match="inflates to more"):
        read(gzip.compress(bytes(1 << 20)))


def test_damaged_headers_are_an_answer_never_a_crash(tmp_path: Path):
    rng = np.random.default_rng(1)
    for _ in range(500):
        damaged = bytearray(encoded())
        for place in rng.integers(0, 352, 4):
            damaged[place] = rng.integers(256)
        try:
            assert read(bytes(damaged)).data.ndim == 3
        except (IncompleteVolume, UnreadableVolume):
            pass
