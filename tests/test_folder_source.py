"""A watched folder: what is noticed, what is waited for, what is refused."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scanside.runtime.realtime.folder_source import FolderSource
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.source import Arrival, Fault, FaultKind

PACE_S = 2.0
SAMPLES = Path(nib.__file__).parent / "nicom/tests/data"


class Clock:
    """Seconds that only the test moves."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def source(folder: Path, clock: Clock) -> FolderSource:
    return quiet(folder, clock)


def quiet(folder: Path, clock: Clock, **settings) -> FolderSource:
    """Without the operating system's help, so that every poll looks."""
    return FolderSource(folder, pace_s=PACE_S, watch=False, rescan_trs=0, clock=clock, **settings)


def volume(value: int = 7) -> bytes:
    return nib.Nifti1Image(np.full((4, 3, 2), value, "i2"), np.eye(4)).to_bytes()


def kinds(arrivals: list[Arrival]) -> list[str | int]:
    return [a.number if isinstance(a, Frame) else str(a.kind) for a in arrivals]


def test_a_file_is_one_frame_numbered_from_0(source: FolderSource, folder: Path, clock: Clock):
    (folder / "001_000005_000003.nii").write_bytes(volume())
    (frame,) = source.poll(0)
    assert isinstance(frame, Frame)
    assert (frame.number, frame.arrived_s) == (2, clock.now_s)
    assert source.poll(0) == []


def test_the_first_number_can_be_another(folder: Path, clock: Clock):
    source = quiet(folder, clock, first_number=100)
    (folder / "vol100.nii").write_bytes(volume())
    assert kinds(source.poll(0)) == [0]


def test_series_are_told_apart_by_the_name_before_the_number(source: FolderSource, folder: Path):
    for name in ("run_1.nii", "run_2.nii", "moco_1.nii"):
        (folder / name).write_bytes(volume())
    moco, first, second = source.poll(0)
    assert isinstance(moco, Frame)
    assert isinstance(first, Frame)
    assert isinstance(second, Frame)
    assert first.series == second.series != moco.series


def test_a_growing_file_is_waited_for(source: FolderSource, folder: Path, clock: Clock):
    path, raw = folder / "vol1.nii", volume()
    for length in range(0, len(raw), 40):
        path.write_bytes(raw[:length])
        assert source.poll(0) == []
        clock.now_s += 2.9 * PACE_S
    path.write_bytes(raw)
    assert kinds(source.poll(0)) == ["half-written", 0]


def test_a_file_that_stops_growing_is_truncated(source: FolderSource, folder: Path, clock: Clock):
    (folder / "vol4.nii").write_bytes(volume()[:-1])
    assert source.poll(0) == []
    clock.now_s += 2.9 * PACE_S
    assert source.poll(0) == []
    clock.now_s += 0.2 * PACE_S
    (fault,) = source.poll(0)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.number) == (FaultKind.TRUNCATED, 3)
    clock.now_s += 50 * PACE_S
    assert source.poll(0) == []


def test_a_truncated_file_that_is_completed_after_all_still_counts(
    source: FolderSource, folder: Path, clock: Clock
):
    (folder / "vol4.nii").write_bytes(volume()[:-1])
    source.poll(0)
    clock.now_s += 4 * PACE_S
    assert kinds(source.poll(0)) == ["truncated"]
    (folder / "vol4.nii").write_bytes(volume())
    assert kinds(source.poll(0)) == [3]


def test_a_file_that_is_written_again_comes_again(source: FolderSource, folder: Path):
    path = folder / "vol1.nii"
    path.write_bytes(volume())
    assert kinds(source.poll(0)) == [0]
    path.with_suffix(".tmp").write_bytes(volume(8))
    os.replace(path.with_suffix(".tmp"), path)
    assert kinds(source.poll(0)) == [0]


@pytest.mark.parametrize("name", [".vol1.nii", "vol1.nii.part", "vol1.nii.tmp", "vol1.nii~"])
def test_passing_names_are_not_looked_at(source: FolderSource, folder: Path, name: str):
    (folder / name).write_bytes(volume())
    assert source.poll(0) == []
    os.replace(folder / name, folder / "vol1.nii")
    assert kinds(source.poll(0)) == [0]


@pytest.mark.parametrize("name", ["notes.txt", "mean.nii", "image.dcm"])
def test_what_is_no_volume_is_told_once_without_its_name(
    source: FolderSource, folder: Path, clock: Clock, name: str
):
    (folder / f"Doe_{name}").write_bytes(b"Jane Doe, born in 1970. " * 20)
    assert source.poll(0) == []
    clock.now_s += 4 * PACE_S
    (fault,) = source.poll(0)
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.UNREADABLE
    assert "Doe" not in repr(fault)
    clock.now_s += 4 * PACE_S
    assert source.poll(0) == []


def test_a_pattern_keeps_other_files_out(folder: Path, clock: Clock):
    source = quiet(folder, clock, pattern="run_*.nii")
    (folder / "run_1.nii").write_bytes(volume())
    (folder / "scout_1.nii").write_bytes(volume())
    assert kinds(source.poll(0)) == [0]


def test_a_folder_that_holds_a_run_is_refused_unless_told_whose_it_is(folder: Path, clock: Clock):
    for number in (1, 2):
        (folder / f"vol{number}.nii").write_bytes(volume())
    with pytest.raises(ValueError, match="already holds 2 files; empty it"):
        quiet(folder, clock)
    assert kinds(quiet(folder, clock, existing="take").poll(0)) == [0, 1]
    ignoring = quiet(folder, clock, existing="ignore")
    assert ignoring.poll(0) == []
    (folder / "vol3.nii").write_bytes(volume())
    assert kinds(ignoring.poll(0)) == [2]


def test_a_folder_must_be_there(tmp_path: Path, clock: Clock):
    with pytest.raises(ValueError, match="is no folder; make it before the run"):
        quiet(tmp_path / "none", clock)


def test_a_folder_that_vanishes_is_told_once_and_may_come_back(
    source: FolderSource, folder: Path, clock: Clock
):
    shutil.rmtree(folder)
    assert kinds(source.poll(0)) == ["source-lost"]
    assert source.poll(0) == []
    folder.mkdir()
    (folder / "vol1.nii").write_bytes(volume())
    assert kinds(source.poll(0)) == [0]


def test_real_mosaics_come_through_the_folder(source: FolderSource, folder: Path):
    import gzip

    for number, name in enumerate(("siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz")):
        raw = gzip.decompress((SAMPLES / name).read_bytes())
        (folder / f"001_000012_{number + 1:06d}.dcm").write_bytes(raw)
    frames = source.poll(0)
    assert kinds(frames) == [0, 1]
    assert all(isinstance(f, Frame) and f.data.shape == (128, 128, 48) for f in frames)


@pytest.mark.parametrize("polling", [False, True], ids=["told", "polling"])
def test_the_operating_system_tells_of_new_files(folder: Path, polling: bool):
    # no look into the folder for an hour: only the watcher can tell
    source = FolderSource(folder, pace_s=3600.0, rescan_trs=1.0, polling=polling)
    source.poll(0)
    found = None
    for number in range(1, 200):  # the first may fall before the watcher has begun
        (folder / f"vol{number}.nii").write_bytes(volume())
        if found := source.poll(0.1):
            break
    source.close()
    assert found
    assert isinstance(found[-1], Frame)


def test_closing_ends_the_thread(folder: Path):
    before = threading.active_count()
    source = FolderSource(folder, pace_s=PACE_S)
    source.close()
    source.close()
    assert threading.active_count() == before


def test_a_poll_without_news_takes_no_longer_than_it_was_given(folder: Path):
    source = FolderSource(folder, pace_s=0.01)
    assert source.poll(0.05) == []
    source.close()


def test_a_watcher_that_dies_is_made_up_for_by_looking(
    folder: Path, monkeypatch: pytest.MonkeyPatch, small_run: Callable[..., Path]
):
    from scanside.runtime.realtime import folder_watcher

    def failing(*_: object, **__: object) -> None:
        raise OSError("too many watches")

    monkeypatch.setattr(folder_watcher, "watch", failing)
    source = FolderSource(folder, pace_s=0.02)
    (folder / "vol1.nii").write_bytes(volume())
    found = source.poll(5.0)
    source.close()
    assert 0 in kinds(found)
