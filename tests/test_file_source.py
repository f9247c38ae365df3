"""A 4-D file as a source, and the file itself read volume by volume."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scanside.runtime.realtime.arrivals import Arrivals
from scanside.runtime.realtime.file_source import FileSource
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.run_file import RunFile
from scanside.runtime.realtime.slot_state import Ending
from scanside.runtime.realtime.slots import Slots
from scanside.runtime.realtime.source import Fault, FaultKind


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
@pytest.mark.parametrize("dtype", ["i2", "f4", ">i2", "u1"])
def test_every_volume_is_that_of_the_file(small_run: Callable[..., Path], name: str, dtype: str):
    path = small_run(6, dtype=dtype, name=name)
    source = FileSource(path)
    slots = Slots(tr_s=1.6, pace_s=1e6, volumes=6)
    receiver = Arrivals(source, slots)
    frames = list(receiver)
    source.close()
    assert receiver.ending is Ending.COMPLETE
    stored = np.asanyarray(nib.load(path).dataobj)
    for number, frame in enumerate(frames):
        assert isinstance(frame, Frame)
        assert frame.number == number
        assert frame.data.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(frame.data, stored[..., number])
        np.testing.assert_array_equal(frame.affine, nib.load(path).affine)


def test_slope_and_intercept_travel_beside_the_stored_values(tmp_path: Path):
    image = nib.Nifti1Image(np.arange(48, dtype="f4").reshape(2, 3, 4, 2), np.eye(4))
    image.header.set_data_dtype("i2")
    nib.save(image, tmp_path / "scaled.nii")
    run = RunFile(tmp_path / "scaled.nii")
    volumes = [data * run.slope + run.inter for data in run.read()]
    assert next(run.read()).dtype == np.int16
    step = run.slope / 2
    np.testing.assert_allclose(np.stack(volumes, -1), image.get_fdata(), atol=step)


def test_volumes_come_at_their_pace(small_run: Callable[..., Path]):
    now_s = [10.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    source = FileSource(small_run(3), pace_s=2.0, clock=lambda: now_s[0], sleep=sleep)
    assert source.poll(0.5) == []
    (first,) = source.poll(5.0)
    assert isinstance(first, Frame)
    assert (first.arrived_s, now_s[0]) == (12.0, 12.0)
    now_s[0] = 30.0  # whoever was busy finds both, at the times at which they came
    later = [frame for _ in range(2) for frame in source.poll(0.0)]
    assert [frame.arrived_s for frame in later if isinstance(frame, Frame)] == [14.0, 16.0]
    assert source.exhausted
    assert source.poll(1.0) == []
    source.close()


def test_a_gzip_that_ends_early_is_truncated_and_what_came_counts(small_run: Callable[..., Path]):
    path = small_run(8, name="run.nii.gz")
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[: 352 + 5 * 7 * 6 * 5 * 2 + 10]))
    receiver = Arrivals(FileSource(path), Slots(tr_s=1.6, pace_s=1e6, volumes=8))
    arrivals = list(receiver)
    assert [a.number for a in arrivals if isinstance(a, Frame)] == list(range(5))
    cut = next(a for a in arrivals if isinstance(a, Fault))
    assert (cut.kind, cut.number) == (FaultKind.TRUNCATED, 5)
    assert receiver.ending is Ending.EXHAUSTED
    assert receiver.slots.summary().partial == (5,)
    assert receiver.slots.summary().missing == (6, 7)


def test_a_plain_file_that_is_too_short_is_refused_at_once(small_run: Callable[..., Path]):
    path = small_run(8)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is truncated: 3711 of 3712 bytes; copy it again"):
        FileSource(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such file"),
        (b"something else", "is not a NIfTI file"),
        (nib.Nifti1Image(np.zeros((2, 2, 2), "i2"), np.eye(4)).to_bytes(), r"\(X, Y, Z, T\)"),
        (nib.Nifti1Image(np.zeros((2, 2, 2, 2), "c8"), np.eye(4)).to_bytes(), "complex64"),
    ],
)
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, content: bytes | None, sentence: str):
    if content is not None:
        (tmp_path / "run.nii").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        FileSource(tmp_path / "run.nii")
