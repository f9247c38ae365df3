"""Slices that come one by one: when they are a volume, and what is told when they are not."""

import numpy as np
import pytest

from scanside.runtime.realtime.dicom_geometry import NoVolume, make_slice, stack_slices
from scanside.runtime.realtime.dicom_slices import SliceFile
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.slice_gathering import SliceGathering
from scanside.runtime.realtime.source import Arrival

AXIAL = [1, 0, 0, 0, 1, 0]


def picture(z: float, shape: tuple[int, int] = (4, 3), orientation=AXIAL):
    return make_slice(np.full(shape, int(z), "i2"), [1, 2, z], orientation, [2.0, 2.5], 3.0)


def came(number: int, z: int, slices: int | None = 3, series: str = "a", **changes) -> SliceFile:
    return SliceFile(
        slice=picture(3.0 * z, **changes),
        number=number,
        series=series,
        slices=slices,
        tr_s=2.0,
        arrived_s=10.0 * number + z,
        acquired_s=None,
    )


def told(arrivals: list[Arrival]) -> list[tuple[str, int | None]]:
    return [("frame" if isinstance(a, Frame) else str(a.kind), a.number) for a in arrivals]


@pytest.fixture
def gathering() -> SliceGathering:
    return SliceGathering(patience_s=6.0)


def test_a_volume_is_whole_with_its_last_slice_in_any_order(gathering: SliceGathering):
    assert gathering.add(came(0, 2), 0.0) == []
    assert gathering.add(came(1, 1), 0.0) == []
    assert gathering.add(came(0, 0), 0.0) == []
    (frame,) = gathering.add(came(0, 1), 1.0)
    assert isinstance(frame, Frame)
    assert (frame.number, frame.arrived_s, frame.data.shape) == (0, 2.0, (3, 4, 3))
    assert frame.data[0, 0].tolist() == [0, 3, 6]
    # left-posterior-superior to right-anterior-superior: the first two change sign
    assert frame.affine.tolist() == [[-2.5, 0, 0, -1], [0, -2, 0, -2], [0, 0, 3, 0], [0, 0, 0, 1]]


def test_slices_that_are_not_counted_are_as_many_as_the_first_volumes_have(
    gathering: SliceGathering,
):
    slices = [came(n, z, None) for n in range(3) for z in range(3)]
    del slices[1]  # the first volume lacks one
    arrivals = [told(gathering.add(one, 0.0)) for one in slices]
    assert [found for found in arrivals if found] == [[("frame", 1)], [("frame", 2)]]
    assert told(gathering.tick(7.0)) == [("short", 0)]


def test_a_second_series_is_taken_to_have_as_many_slices(gathering: SliceGathering):
    for slice_of_run in [came(n, z, None) for n in range(3) for z in range(3)]:
        gathering.add(slice_of_run, 0.0)
    beside = [came(n, z, None, series="b") for n in range(3) for z in range(3)]
    frames = [told(gathering.add(one, 0.0)) for one in beside]
    assert [index for index, found in enumerate(frames) if found] == [2, 5, 8]
    # and if it has fewer after all, they count when that is plain
    fewer = [came(n, z, None, series="c") for n in range(4) for z in range(2)]
    frames = [found for one in fewer for found in told(gathering.add(one, 0.0))]
    assert frames == [("frame", n) for n in range(4)]


def test_a_run_of_one_volume_is_whole_when_nothing_more_comes(gathering: SliceGathering):
    for z in range(3):
        assert gathering.add(came(0, z, None), 0.0) == []
    assert gathering.tick(5.9) == []
    assert told(gathering.tick(6.1)) == [("frame", 0)]
    assert gathering.tick(60.0) == []


def test_a_volume_that_lacks_slices_is_short_once_and_counts_if_they_come(
    gathering: SliceGathering,
):
    gathering.add(came(4, 0), 0.0)
    gathering.add(came(4, 2), 5.0)
    assert gathering.tick(10.9) == []
    assert told(gathering.tick(11.1)) == [("short", 4)]
    assert gathering.tick(99.0) == []
    assert told(gathering.add(came(4, 1), 100.0)) == [("frame", 4)]


def test_a_slice_that_never_became_complete_is_not_told_twice(gathering: SliceGathering):
    gathering.add(came(4, 0), 0.0)
    gathering.spoil("a", 4, 1.0)
    assert gathering.tick(99.0) == []


def test_a_second_copy_of_all_slices_is_a_second_frame(gathering: SliceGathering):
    twice = [came(0, z) for z in (0, 0, 1, 1, 2, 2)]
    assert [k for one in twice for k, _ in told(gathering.add(one, 0.0))] == ["frame", "frame"]


def test_a_second_copy_of_one_slice_is_a_duplicate(gathering: SliceGathering):
    for z in range(3):
        gathering.add(came(0, z), 0.0)
    gathering.add(came(0, 1), 1.0)
    assert told(gathering.tick(8.0)) == [("duplicate", 0)]


def test_half_written_slices_are_told_once_for_their_volume(gathering: SliceGathering):
    for z in range(2):
        gathering.add(came(0, z), 0.0, half_written=True)
    assert told(gathering.add(came(0, 2), 0.0)) == [("half-written", 0), ("frame", 0)]


def test_series_are_gathered_apart(gathering: SliceGathering):
    for z in range(3):
        assert gathering.add(came(0, z, series="b"), 0.0) == [] or z == 2
        gathering.add(came(0, z, series="a"), 0.0)
    assert gathering.tick(99.0) == []


def test_a_matrix_that_changes_within_a_volume_is_told(gathering: SliceGathering):
    gathering.add(came(3, 0), 0.0)
    gathering.add(came(3, 1), 0.0)
    (fault,) = gathering.add(came(3, 2, shape=(8, 8)), 0.0)
    assert told([fault]) == [("changed-geometry", 3)]


def test_memory_is_bounded(gathering: SliceGathering):
    for number in range(500):
        gathering.add(came(number, 0, 30, series=f"{number % 100}"), float(number))
    for number in range(500):
        gathering.add(came(number, 0, 30, series="0"), float(number))
    held = [v for s in gathering._series.values() for v in s.growing.values()]
    assert len(gathering._series) == 64
    assert len(held) <= 64 + 64 * 5


@pytest.mark.parametrize(
    ("slices", "why"),
    [
        ([picture(0), picture(3), picture(9)], "1 slices are missing between its 3"),
        ([picture(0), picture(0), picture(3)], "two pictures at one place"),
        ([picture(0), picture(3, (4, 4))], "different size or direction"),
        ([picture(0), picture(3, orientation=[1, 0, 0, 0, 0, 1])], "different size or direction"),
    ],
)
def test_what_is_no_volume_says_why(slices, why: str):
    with pytest.raises(NoVolume, match=why):
        stack_slices(slices)


@pytest.mark.parametrize(
    "values",
    [
        {"position": None},
        {"position": [0, 0]},
        {"position": [0, 0, np.nan]},
        {"orientation": [1, 0, 0, 1, 0, 0]},
        {"orientation": [2, 0, 0, 0, 2, 0]},
        {"spacing": [0, 1]},
        {"spacing": "wide"},
    ],
)
def test_a_place_that_makes_no_sense_is_refused(values):
    whole = {"position": [0, 0, 0], "orientation": AXIAL, "spacing": [1, 1], "thickness_mm": 1}
    with pytest.raises(NoVolume, match="place, direction or pixel size"):
        make_slice(np.zeros((2, 2)), **{**whole, **values})
