"""What a session is made of, piece by piece: stimuli, windows, time axis, confidence, memory."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.beta import Beta
from scanside.runtime.realtime.beta_scale import BetaScale
from scanside.runtime.realtime.calm_blas import calm_blas
from scanside.runtime.realtime.confidence import Confidence, signal_share
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.frozen_garbage import frozen_garbage
from scanside.runtime.realtime.journal import Journal
from scanside.runtime.realtime.live_markers import LslMarkers
from scanside.runtime.realtime.locked_memory import locked_memory, may_lock
from scanside.runtime.realtime.lsl_outlet import LslOutlet
from scanside.runtime.realtime.memory import Memory
from scanside.runtime.realtime.normalisation import RunningNormalisation
from scanside.runtime.realtime.run_folder import RunFolder
from scanside.runtime.realtime.schedule import Schedule
from scanside.runtime.realtime.session_config import SessionConfig
from scanside.runtime.realtime.source import Fault, FaultKind
from scanside.runtime.realtime.stimuli import Stimulus, check_inside, chosen, read_events
from scanside.runtime.realtime.tally import Tally
from scanside.runtime.realtime.time_axis import TimeAxis


def events(tmp_path: Path, *rows: str, header: str = "onset\tduration\ttrial_type") -> Path:
    path = tmp_path / "events.tsv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def frame(number: int, arrived_s: float) -> Frame:
    data = np.ones((2, 2, 2), np.int16)
    return Frame(number=number, data=data, affine=np.eye(4), series="1", arrived_s=arrived_s)


def test_events_of_bids_are_read_in_their_order(tmp_path: Path):
    path = events(tmp_path, "4.0\t3\tface", "1.5\t0\thouse")
    assert read_events(path) == [
        Stimulus(onset_s=4.0, duration_s=3.0, name="face"),
        Stimulus(onset_s=1.5, duration_s=0.0, name="house"),
    ]


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("onset\ttrial_type", "1\tface", "has no column duration"),
        ("onset\tduration", "n/a\t1", "line 2: onset must be a number of seconds; got 'n/a'"),
        ("onset\tduration", "1\t-2", "duration must be 0 or more"),
        ("onset\tduration", "1\tinf", "duration must be a number"),
        ("onset\tduration", "", "holds no events"),
    ],
)
def test_events_that_are_none_are_refused(tmp_path: Path, header: str, row: str, said: str):
    path = events(tmp_path, *([row] if row else []), header=header)
    with pytest.raises(InputError, match=said):
        read_events(path)


@pytest.mark.parametrize(
    ("onsets", "said"),
    [
        ((1000.0, 1010.0), "count from the beginning of the session: subtract"),
        ((1.0, 400.0), "1 of 2 onsets lie outside the run of 320 s, the first of them at 400 s"),
        ((-3.0, 4.0), "onsets count from the first kept volume"),
    ],
)
def test_onsets_outside_the_run_are_refused_with_a_hint(onsets: tuple[float, float], said: str):
    stimuli = [Stimulus(onset_s=onset, duration_s=1.0) for onset in onsets]
    with pytest.raises(InputError, match=said):
        check_inside(stimuli, 320.0, "events.tsv")


def test_a_trial_type_that_is_not_there_is_refused():
    stimuli = [Stimulus(onset_s=0, duration_s=1, name=name) for name in ("face", "rest", "face")]
    assert chosen(stimuli, ["face"], "events.tsv") == {0, 2}
    assert chosen(stimuli, [], "events.tsv") == {0, 1, 2}
    with pytest.raises(InputError, match="no event of type 'house'; those that are there: face"):
        chosen(stimuli, ["house"], "events.tsv")


def test_a_window_closes_with_the_volume_in_which_it_ends():
    schedule = Schedule(1.6, 100, (7.5, 30.0))
    schedule.add(0, Stimulus(onset_s=0.5, duration_s=3.0))  # ends at 8.0 s: with volume 4, not 5
    assert schedule.reach(3) == []
    (due,) = schedule.reach(4)
    assert (due.trial, due.revision) == (0, 0)
    # a volume that never comes holds nothing up: a later one closes the window as well
    (due,) = schedule.reach(60)
    assert (due.revision, due.last, due.cut_s) == (1, 19, 0.0)


def test_a_window_that_outlasts_the_run_closes_with_its_last_volume():
    schedule = Schedule(2.0, 10, (7.5, 30.0))
    schedule.add(0, Stimulus(onset_s=16.0, duration_s=3.0))
    assert [(due.last, due.cut_s) for due in schedule.reach(9)] == [(9, 3.5), (9, 26.0)]


def test_discarded_volumes_come_before_the_run():
    axis = TimeAxis(SessionConfig(tr_s=2.0, volumes=20, discard=3))
    assert [axis.number(frame(n, 100.0 + 2 * n)) for n in range(5)] == [None, None, None, 0, 1]
    # volume 3 arrived at 106 s, so it began at 104 s
    assert axis.onset_s(107.0) == pytest.approx(3.0)


def test_a_trigger_opens_the_volume_that_is_complete_one_tr_later():
    axis = TimeAxis(SessionConfig(tr_s=2.0, volumes=20, trigger="go"))
    assert axis.number(frame(0, 99.0)) is None
    axis.trigger(100.0)
    # complete half a second after the trigger: it was under way already
    assert axis.number(frame(1, 100.5)) is None
    assert axis.number(frame(2, 102.5)) == 0
    assert axis.number(frame(3, 104.5)) == 1
    assert axis.onset_s(103.0) == pytest.approx(3.0)


def test_a_run_begun_anew_waits_for_its_own_trigger():
    axis = TimeAxis(SessionConfig(tr_s=2.0, volumes=20, trigger="go"))
    axis.trigger(100.0)
    assert axis.number(frame(0, 102.0)) == 0
    axis.trigger(150.0)  # told before the first volume of the new attempt shows that there is one
    axis.begin()
    assert axis.number(frame(0, 152.0)) == 0
    assert axis.onset_s(151.0) == pytest.approx(1.0)


def test_the_time_axis_survives_a_crash(tmp_path: Path):
    config = SessionConfig(tr_s=2.0, volumes=20, discard=1)
    axis = TimeAxis(config)
    axis.number(frame(1, 50.0))
    journal = Journal.create(tmp_path / "journal.jsonl", {})
    journal.append("axis", **axis.as_record())
    journal.append("event", attempt=0, onset_s=1.5, duration_s=3.0, name="face")
    journal.close()
    taken_up, past = Journal.resume(tmp_path / "journal.jsonl", {})
    taken_up.close()
    memory, again = Memory(past.records), TimeAxis(config)
    again.restore(memory.axis(0) or {})
    assert again.onset_s(60.0) == axis.onset_s(60.0)
    assert memory.stimuli(0) == [Stimulus(onset_s=1.5, duration_s=3.0, name="face")]


def test_one_bad_sign_lowers_the_confidence():
    sure = Confidence(signal=0.9, clip=0.9, text=0.9)
    assert sure.value == pytest.approx(0.9)
    assert Confidence(signal=0.9, clip=0.9, text=0.1).value < 0.5
    assert Confidence(signal=0.9).value == pytest.approx(0.9)


def test_the_share_of_signal_is_what_noise_does_not_explain():
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(0, 2, 20_000), rng.normal(0, 1, 20_000)
    values = (signal + noise).astype(np.float32)
    share = signal_share(values, np.ones(20_000, np.float32))
    assert share == pytest.approx(4 / 5, abs=0.02)  # a sample of 20,000
    assert signal_share(noise.astype(np.float32), np.full(20_000, 2.0, np.float32)) == 0


def test_betas_become_percent_and_leave_the_scale_of_the_statistics():
    first = RunningNormalisation.of(np.array([1.0, 0.0]), np.array([0.5, 2.0]), 10, "test")
    second = RunningNormalisation.of(np.zeros(2), np.ones(2), 10, "test")
    scale = BetaScale((first, second), np.array([0, 3]), (2, 2))
    beta = Beta(
        trial=0,
        values=np.float32([4.0, -8.0]),
        variance=np.float32([1.0, 4.0]),
        newest=9,
        volumes=10,
        freedom=5,
    )
    tokens, values, variance = scale.tokens(beta, np.float32([100.0, 200.0]), 0.5, 0)
    # 4 of 100 at a height of 0.5 is 2 percent: 2 standard deviations of 0.5 above a mean of 1
    np.testing.assert_allclose(tokens, [[2.0, 0.0], [0.0, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(values, [2.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(variance, [0.25 / 0.25, 0.25 / 4.0], rtol=1e-6)
    again, _, _ = scale.tokens(beta, np.float32([100.0, 200.0]), 0.5, 0)
    assert again[0, 0] < 2  # the trial itself has entered the statistics


def test_faults_are_counted_by_kind_and_their_volumes_named():
    tally = Tally()
    for number in (3, 5, 3):
        tally.fault(Fault(kind=FaultKind.MISSING, number=number, seen_s=0.0))
    assert tally.faults() == {"missing": {"count": 3, "volumes": [3, 5]}}


def test_a_run_folder_changes_nothing_until_it_is_begun_and_can_be_undone(tmp_path: Path):
    where = tmp_path / "a" / "b"
    folder = RunFolder(where)
    assert not (tmp_path / "a").exists()
    journal, past = folder.begin({"tr_s": 1.6})
    assert past is None
    journal.close()
    folder.undo()
    assert not (tmp_path / "a").exists()
    tmp_path.joinpath("c").mkdir()
    tmp_path.joinpath("c", "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes.txt' and no journal"):
        RunFolder(tmp_path / "c")


def test_an_answer_that_was_half_written_is_cut_off(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({})[0].close()
    whole = json.dumps({"trial": 0}) + "\n"
    (folder.path / "answers.jsonl").write_text(whole + '{"tri')
    assert folder.answers() == [{"trial": 0}]
    assert (folder.path / "answers.jsonl").read_text() == whole


def test_a_full_disk_is_told_once_and_no_picture_is_left_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = RunFolder(tmp_path / "run")
    folder.begin({})[0].close()
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert folder.picture("first", pixels, {}) == "pictures/first.png"
    (folder.path / "pictures" / ".second.png").symlink_to("/dev/full")
    assert folder.picture("second", pixels, {}) is None
    assert "No space left on device" in (folder.trouble or "")
    assert folder.picture("third", pixels, {}) is None
    assert [p.name for p in (folder.path / "pictures").iterdir()] == ["first.png"]


def test_a_marker_comes_with_the_time_at_which_it_was_sent():
    outlet = LslOutlet("scanside-test-markers")
    markers = LslMarkers("scanside-test-markers", local=True)
    before_s = time.perf_counter()
    outlet.send("face")
    sent_s = time.perf_counter()
    found, give_up_s = [], time.monotonic() + 30
    while not found and time.monotonic() < give_up_s:
        found = markers.poll()
    markers.close()
    outlet.close()
    (marker,) = found
    assert marker.text == "face"
    # causality, but for the error of LSL's estimate of a clock's offset
    assert before_s - 0.05 <= marker.at_s <= sent_s + 0.05


def test_a_stream_that_is_not_there_is_named():
    with pytest.raises(InputError, match="no LSL stream is called 'scanside-nobody'"):
        LslMarkers("scanside-nobody", local=True)


def test_blas_keeps_to_one_thread_meanwhile():
    """And to as many as before afterwards."""

    def threads() -> int:
        blas = [found for found in threadpool_info() if found["user_api"] == "blas"]
        return max(library["num_threads"] for library in blas)

    with threadpool_limits(2, "blas"):
        before = threads()
        with calm_blas():
            assert threads() == 1
        assert threads() == before == 2


def test_what_was_there_before_a_run_is_not_looked_through_meanwhile():
    with frozen_garbage():
        assert gc.get_freeze_count() > 10_000
        assert len(gc.get_objects()) < 1_000
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() >= 1  # what the run makes is still collected
    assert gc.get_freeze_count() == 0


def test_memory_is_locked_where_that_is_allowed():
    def locked_kb() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmLck:")[1].split()[0])

    with locked_memory() as locked:
        assert locked == may_lock()
        assert (locked_kb() > 0) == locked
    assert locked_kb() == 0
