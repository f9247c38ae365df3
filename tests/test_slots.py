"""The slots of a run: every order of arrival that a scanner, a share or a cable can produce."""

import numpy as np
import pytest

from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.patience import Patience
from scanside.runtime.realtime.slot_state import Ending, SlotState
from scanside.runtime.realtime.slots import Slots
from scanside.runtime.realtime.source import Arrival, Fault, FaultKind

TR_S = 2.0
SHAPE = (4, 3, 6)


def frame(number: int, arrived_trs: float | None = None, series: str = "5-run", **changes) -> Frame:
    """Volume `number`, by default on time: complete one TR after it began."""
    data = (
        np.random.default_rng(abs(number)).integers(1, 99, changes.pop("shape", SHAPE)).astype("i2")
    )
    values = {
        "data": data,
        "affine": np.diag([2.0, 2, 2, 1]),
        "tr_s": TR_S,
        "arrived_s": TR_S * (number + 1.0 if arrived_trs is None else arrived_trs),
    }
    return Frame(number=number, series=series, **{**values, **changes})


def placed(slots: Slots, *frames: Frame) -> list[Arrival]:
    return [arrival for one in frames for arrival in slots.place(one)]


def faults(arrivals: list[Arrival]) -> list[tuple[FaultKind, int | None]]:
    return [(a.kind, a.number) for a in arrivals if isinstance(a, Fault)]


def numbers(arrivals: list[Arrival]) -> list[int]:
    return [a.number for a in arrivals if isinstance(a, Frame)]


def run(volumes: int | None = 20, **settings) -> Slots:
    return Slots(tr_s=TR_S, volumes=volumes, **settings)


def test_a_run_without_faults_is_complete_with_its_last_volume():
    slots = run(5)
    for n in range(5):
        assert slots.ending(TR_S * n, 0.0) is None
        assert placed(slots, (one := frame(n))) == [one]
        assert slots.tick(one.arrived_s) == []
    assert slots.ending(TR_S * 5, 0.0) is Ending.COMPLETE
    assert slots.finish(TR_S * 5) == []
    summary = slots.summary()
    assert (summary.received, summary.missing, summary.faults) == (5, (), {})


def test_a_gap_keeps_its_place_and_is_late_then_missing():
    slots = run()
    placed(slots, frame(0), frame(2))
    assert slots.state(1) is SlotState.WAITING
    due = 2 * TR_S
    assert slots.tick(due + 2.1 * TR_S) == []
    assert slots.state(1) is SlotState.LATE
    assert faults(slots.tick(due + 10.1 * TR_S))[-1] == (FaultKind.MISSING, 1)
    assert [slots.state(n) for n in range(4)] == [
        SlotState.RECEIVED,
        SlotState.MISSING,
        SlotState.RECEIVED,
        SlotState.WAITING,
    ]


def test_first_volumes_that_never_come_are_gaps_too():
    slots = run()
    placed(slots, frame(2))
    assert [slots.state(n) for n in range(3)][:2] == [SlotState.WAITING] * 2
    assert faults(slots.tick(3 * TR_S + 3.1 * TR_S)) == []
    assert slots.state(0) is slots.state(1) is SlotState.LATE


def test_nothing_that_arrives_is_lost_even_after_it_was_given_up():
    slots = run()
    placed(slots, frame(0), frame(2))
    slots.tick(30 * TR_S)
    late = frame(1, arrived_trs=31)
    arrivals = placed(slots, late)
    assert faults(arrivals) == [(FaultKind.OUT_OF_ORDER, 1), (FaultKind.LATE, 1)]
    assert arrivals[-1] is late
    assert slots.state(1) is SlotState.RECEIVED
    assert slots.summary().missing == ()


def test_swapped_neighbours_are_out_of_order_and_not_late():
    slots = run()
    arrivals = placed(slots, frame(0), frame(2), frame(1, arrived_trs=3.1), frame(3))
    assert faults(arrivals) == [(FaultKind.OUT_OF_ORDER, 1)]
    assert numbers(arrivals) == [0, 2, 1, 3]


def test_a_delayed_volume_is_late_by_what_it_took_longer():
    slots = run()
    arrivals = placed(slots, *(frame(n) for n in (0, 2, 3, 4)), frame(1, arrived_trs=5.5))
    late = next(a for a in arrivals if isinstance(a, Fault) and a.kind is FaultKind.LATE)
    assert (late.number, late.detail) == (1, "by 3.5 TRs")


def test_a_volume_twice_counts_once():
    slots = run()
    arrivals = placed(slots, frame(0), frame(1), frame(0, arrived_trs=2.2), frame(1))
    assert numbers(arrivals) == [0, 1]
    assert faults(arrivals) == [(FaultKind.DUPLICATE, 0), (FaultKind.DUPLICATE, 1)]


@pytest.mark.parametrize("short", [(4, 3, 5), (4, 3, 1)])
def test_a_short_volume_is_partial_until_it_comes_whole(short: tuple[int, ...]):
    slots = run()
    arrivals = placed(slots, frame(0), frame(1, shape=short), frame(2))
    assert (numbers(arrivals), faults(arrivals)) == ([0, 2], [(FaultKind.SHORT, 1)])
    assert slots.state(1) is SlotState.PARTIAL
    assert slots.tick(40 * TR_S)[-1].kind is FaultKind.STALL
    assert slots.summary().partial == (1,)
    assert numbers(placed(slots, frame(1, arrived_trs=41))) == [1]
    assert slots.summary().partial == ()


def test_slices_that_were_never_filled_make_a_volume_short():
    slots = run()
    hollow = frame(1)
    hollow.data[:, :, 4:] = 0
    arrivals = placed(slots, frame(0), hollow)
    assert (numbers(arrivals), faults(arrivals)) == ([0], [(FaultKind.SHORT, 1)])


def test_slices_outside_the_head_may_be_empty():
    slots = run()
    masked = [frame(n) for n in range(3)]
    for one in masked:
        one.data[:, :, 4:] = 0
    assert numbers(placed(slots, *masked)) == [0, 1, 2]


def test_a_first_volume_that_was_short_is_taken_back():
    slots = run()
    arrivals = placed(slots, frame(0, shape=(4, 3, 2)), frame(1), frame(2))
    assert faults(arrivals) == [(FaultKind.SHORT, 0)]
    assert numbers(arrivals) == [0, 1, 2]
    assert [slots.state(n) for n in range(3)][0] is SlotState.PARTIAL
    assert slots.summary().received == 2


@pytest.mark.parametrize("shape", [(5, 3, 6), (4, 3, 7)])
def test_another_matrix_in_mid_run_is_refused(shape: tuple[int, ...]):
    slots = run()
    arrivals = placed(slots, *(frame(n) for n in range(4)), frame(4, shape=shape), frame(5))
    assert faults(arrivals) == [(FaultKind.CHANGED, 4)]
    assert numbers(arrivals) == [0, 1, 2, 3, 5]


def test_numbers_outside_the_run_are_refused():
    slots = run(4)
    arrivals = placed(slots, frame(0), frame(-1, arrived_trs=1.1), frame(4, arrived_trs=1.2))
    assert faults(arrivals) == [(FaultKind.OUTSIDE, -1), (FaultKind.OUTSIDE, 4)]
    unplanned = run(None)
    arrivals = placed(unplanned, frame(0), frame(10**9, arrived_trs=2))
    assert faults(arrivals)[-1] == (FaultKind.OUTSIDE, 10**9)
    assert unplanned.highest == 0


def test_a_stall_is_told_once_and_its_volumes_are_not_late():
    slots = run()
    placed(slots, *(frame(n) for n in range(3)))
    told = [f for trs in (4, 6, 8.5, 9, 10) for f in slots.tick(trs * TR_S)]
    assert faults(told) == [(FaultKind.STALL, 3)]
    burst = [frame(n, arrived_trs=10.5 + 0.01 * n) for n in range(3, 10)]
    assert faults(placed(slots, *burst)) == []
    assert slots.summary().received == 10


def test_a_stall_is_seen_without_a_tick_in_it():
    slots = run()
    assert faults(placed(slots, frame(0), frame(1, arrived_trs=9))) == [(FaultKind.STALL, 1)]


def test_a_second_series_beside_the_run_is_left_out_and_counted():
    slots = run()
    arrivals: list[Arrival] = []
    for n in range(8):
        moco = [frame(n, n + 1.4, "6-moco")] if n >= 2 else []
        arrivals += placed(slots, frame(n), *moco)
    assert numbers(arrivals) == list(range(8))
    told = [a for a in arrivals if isinstance(a, Fault)]
    assert [(f.kind, f.series) for f in told] == [(FaultKind.FOREIGN, "6-moco")]
    slots.finish(20 * TR_S)
    assert slots.summary().faults[FaultKind.FOREIGN] == 6
    assert slots.former == []


def test_a_run_that_begins_anew_is_followed_from_its_first_volume():
    slots = run(10)
    placed(slots, *(frame(n) for n in range(5)))
    anew = [frame(n, 20 + n, "6-again") for n in range(10)]
    arrivals = placed(slots, *anew)
    assert faults(arrivals) == [(FaultKind.RESTART, 0)]
    assert [a for a in arrivals if isinstance(a, Frame)] == anew
    assert isinstance(arrivals[0], Fault), "told before the first frame of the new attempt"
    assert slots.ending(31 * TR_S, 0.0) is Ending.COMPLETE
    assert [(s.series, s.received) for s in slots.former] == [("5-run", 5)]
    assert (slots.summary().series, slots.summary().received) == ("6-again", 10)


def test_a_run_can_begin_anew_twice_and_never_goes_back():
    slots = run(10)
    placed(slots, *(frame(n) for n in range(4)))
    placed(slots, *(frame(n, 20 + n, "6-again") for n in range(4)))
    placed(slots, *(frame(n, 30 + n, "5-run") for n in range(4, 8)))
    assert slots.series == "6-again"
    placed(slots, *(frame(n, 40 + n, "7-again") for n in range(4)))
    assert slots.series == "7-again"
    assert len(slots.former) == 2


def test_a_scout_of_another_shape_is_no_restart():
    slots = run()
    scouts = [frame(n, 5 + n, "9-scout", shape=(8, 8, 3)) for n in range(5)]
    arrivals = placed(slots, frame(0), *scouts, frame(1))
    assert numbers(arrivals) == [0, 1]
    assert slots.former == []


def test_nothing_after_a_complete_run_is_a_restart():
    slots = run(3)
    placed(slots, *(frame(n) for n in range(3)))
    next_run = [frame(n, 9 + n, "6-next") for n in range(5)]
    assert numbers(placed(slots, *next_run)) == []
    assert slots.series == "5-run"


def test_a_truncated_volume_is_partial_until_it_comes_whole():
    slots = run()
    placed(slots, frame(0), frame(2))
    cut = Fault(kind=FaultKind.TRUNCATED, number=1, series="5-run", seen_s=5 * TR_S)
    assert slots.note(cut) == [cut]
    assert slots.state(1) is SlotState.PARTIAL
    assert FaultKind.MISSING not in {f.kind for f in slots.tick(60 * TR_S)}
    assert numbers(placed(slots, frame(1, arrived_trs=61))) == [1]


def test_a_truncated_file_of_another_series_marks_no_slot():
    slots = run()
    placed(slots, frame(0), frame(2))
    slots.note(Fault(kind=FaultKind.TRUNCATED, number=1, series="6-moco", seen_s=5 * TR_S))
    assert slots.state(1) is SlotState.WAITING
    assert slots.summary().faults == {"truncated": 1}


def test_the_scanners_clock_is_told_when_it_jumps_and_used_for_nothing():
    slots = run()
    times = [TR_S * n + (5.0 if n >= 3 else 0.0) + 86390 for n in range(8)]
    frames = [frame(n, acquired_s=t % 86400) for n, t in enumerate(times)]
    arrivals = placed(slots, *frames)
    assert faults(arrivals) == [(FaultKind.CLOCK_SKEW, 3)]
    assert numbers(arrivals) == list(range(8))


def test_a_header_that_states_another_tr_is_told_once():
    slots = run()
    arrivals = placed(slots, *(frame(n, tr_s=1.5) for n in range(4)))
    assert faults(arrivals) == [(FaultKind.WRONG_TR, 0)]
    assert "1.5 s" in next(a for a in arrivals if isinstance(a, Fault)).detail


def test_a_header_that_moves_is_told_once():
    slots = run()
    moved = np.diag([2.0, 2, 2, 1])
    moved[0, 3] = 4.0
    arrivals = placed(slots, frame(0), frame(1, affine=moved), frame(2, affine=moved))
    assert faults(arrivals) == [(FaultKind.CHANGED, 1)]
    assert numbers(arrivals) == [0, 1, 2]


def test_every_wait_ends():
    slots = run(50)
    assert slots.ending(599 * TR_S, 0.0) is None
    assert slots.ending(601 * TR_S, 0.0) is Ending.NEVER_BEGAN
    placed(slots, *(frame(n) for n in range(10)))
    assert slots.ending(39 * TR_S, 0.0) is None
    assert slots.ending(41 * TR_S, 0.0) is Ending.STALLED
    given_up = [f.number for f in slots.finish(41 * TR_S) if f.kind is FaultKind.MISSING]
    assert given_up == list(range(10, 50))


def test_a_planned_run_is_not_waited_for_long_after_its_end():
    slots = run(10)
    placed(slots, *(frame(n) for n in range(9)))
    assert slots.ending(19 * TR_S, 0.0) is None
    assert slots.ending(20.1 * TR_S, 0.0) is Ending.STALLED


def test_a_source_that_has_no_more_ends_the_run():
    slots = run(10)
    placed(slots, *(frame(n) for n in range(9)))
    assert slots.ending(0.0, 0.0, exhausted=True) is Ending.EXHAUSTED
    unplanned = run(None)
    placed(unplanned, frame(0))
    assert unplanned.ending(0.0, 0.0, exhausted=True) is Ending.COMPLETE


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"late_trs": 0}, "'late_trs' must be a finite number of TRs above 0; got 0"),
        ({"end_trs": float("inf")}, "'end_trs' must be a finite number"),
        ({"late_trs": 20}, "must not decrease; got 20, 10 and 30"),
    ],
)
def test_patience_is_finite_and_in_order(settings: dict[str, float], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        Patience(**settings)


@pytest.mark.parametrize("settings", [{"tr_s": 0}, {"tr_s": 1.0, "pace_s": -1}])
def test_times_are_above_zero(settings: dict[str, float]):
    with pytest.raises(ValueError, match="seconds above 0"):
        Slots(**settings)


def test_any_order_of_arrival_gives_the_same_run():
    rng = np.random.default_rng(0)
    for _ in range(20):
        slots = run(30)
        order = rng.permutation(30)
        arrivals = placed(slots, *(frame(int(n), 40 + 0.01 * i) for i, n in enumerate(order)))
        assert sorted(numbers(arrivals)) == list(range(30))
        assert slots.ending(41 * TR_S, 0.0) is Ending.COMPLETE
