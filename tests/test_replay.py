"""A replayed run through the folder: what arrives is the truth that the replay told.

Time is simulated: the player and the receiver share one clock that only they move, so nothing here
waits and nothing depends on how busy the machine is.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scanside.runtime.cli import main
from scanside.runtime.realtime.arrivals import Arrivals
from scanside.runtime.realtime.faults import FaultRequest, Mishap, plan_run
from scanside.runtime.realtime.folder_source import FolderSource
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.replay import Manner, Player
from scanside.runtime.realtime.run_file import RunFile
from scanside.runtime.realtime.slot_state import Ending
from scanside.runtime.realtime.slots import Slots
from scanside.runtime.realtime.source import Arrival, Fault, FaultKind
from scanside.runtime.realtime.volume_writer import VolumeWriter
from scanside.runtime.realtime.writers import FORMATS, make_writer

TR_S = 1.6
VOLUMES = 24


class Rig:
    """A scanner and a receiver at one simulated clock."""

    def __init__(self, path: Path, faults: list[str], seed: int, writer: VolumeWriter, **manner):
        self.now_s = 1000.0
        self.run = RunFile(path)
        self.arrivals: list[Arrival] = []
        self.plan = plan_run(VOLUMES, [FaultRequest.parse(text) for text in faults], seed)
        folder = path.parent / "incoming"
        self.player = Player(
            self.run,
            self.plan,
            writer,
            folder,
            Manner(tr_s=TR_S, **manner),
            clock=self.clock,
            sleep=self.sleep,
        )
        self.source = FolderSource(
            folder, pace_s=TR_S, watch=False, rescan_trs=0.0, clock=self.clock
        )
        self.slots = Slots(tr_s=TR_S, volumes=VOLUMES)
        self.receiver = Arrivals(self.source, self.slots, self.clock)

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass; the receiver looks into the folder now and then."""
        end = self.now_s + seconds
        while self.now_s < end:
            self.now_s = min(self.now_s + 0.15 * TR_S, end)
            self.arrivals += self.receiver.step(0.0)

    def play(self) -> None:
        self.told = [telling for telling in self._tellings()]
        while not self.receiver.ending:
            self.sleep(TR_S)

    def _tellings(self) -> Iterator[dict]:
        for telling in self.player.play():
            yield telling
            self.arrivals += self.receiver.step(0.0)

    def frames(self) -> list[Frame]:
        """Those of the newest attempt."""
        begin = 0
        for index, arrival in enumerate(self.arrivals):
            if isinstance(arrival, Fault) and arrival.kind is FaultKind.RESTART:
                begin = index
        return [a for a in self.arrivals[begin:] if isinstance(a, Frame)]

    def faults(self) -> set[FaultKind]:
        return {arrival.kind for arrival in self.arrivals if isinstance(arrival, Fault)}


@pytest.fixture
def rig(small_run: Callable[..., Path]) -> Callable[..., Rig]:
    def make(*faults: str, seed: int = 0, writer: str = "nifti", **manner) -> Rig:
        made = Rig(small_run(VOLUMES), list(faults), seed, make_writer(writer, "run"), **manner)
        made.play()
        return made

    return make


def canonical(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With all axes the way of RAS: some formats have no order of slices but that in space."""
    image = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    return np.asarray(image.dataobj), image.affine


def assert_all_that_came_is_there(rig: Rig):
    whole = {
        d.number
        for d in rig.plan.deliveries
        if d.content == "whole"
        and d.series == max(e.series for e in rig.plan.deliveries if e.series != 1)
    }
    frames = rig.frames()
    assert sorted(frame.number for frame in frames) == sorted(whole)
    recorded = np.stack(list(rig.run.read()), axis=-1)
    for frame in frames:
        values, place = canonical(frame.data, frame.affine)
        truth, true_place = canonical(recorded[..., frame.number], rig.run.affine)
        np.testing.assert_array_equal(values, truth)
        np.testing.assert_allclose(place, true_place, atol=1e-5)
    assert rig.slots.summary().received == len(whole)


@pytest.mark.parametrize("writer", FORMATS)
@pytest.mark.parametrize("in_place", [False, True], ids=["renamed", "in-place"])
def test_a_run_without_faults_arrives_as_it_was_recorded(rig, writer: str, in_place: bool):
    played = rig(writer=writer, in_place=in_place)
    assert_all_that_came_is_there(played)
    assert played.receiver.ending is Ending.COMPLETE
    assert [frame.number for frame in played.frames()] == list(range(VOLUMES))
    # a file that is written in two pieces is seen in between, and only then
    assert played.faults() == ({FaultKind.HALF_WRITTEN} if in_place else set())
    assert played.frames()[0].tr_s == pytest.approx(TR_S)


@pytest.mark.parametrize("writer", ["nifti", "mosaic", "siemens-slices"])
@pytest.mark.parametrize("kind", Mishap)
def test_each_fault_is_recognised_by_its_name_and_costs_nothing_else(
    rig, kind: Mishap, writer: str
):
    # a small DICOM is mostly header, and a header that is cut off bears no number
    played = rig(f"{kind}:0.97" if kind is Mishap.TRUNCATE else kind, writer=writer)
    assert_all_that_came_is_there(played)
    (truth,) = played.plan.truths
    assert truth.seen_as in played.faults()
    named = [a for a in played.arrivals if isinstance(a, Fault) and a.kind is truth.seen_as]
    if kind not in (Mishap.RESTART, Mishap.SECOND_SERIES):
        assert {fault.number for fault in named} == set(truth.numbers)
    # what else a fault is bound to look like
    besides = {
        Mishap.DELAY: {FaultKind.OUT_OF_ORDER},
        Mishap.TRUNCATE: set(),
        Mishap.RESTART: {FaultKind.STALL},
    }
    assert played.faults() <= {truth.seen_as} | besides.get(kind, set())


@pytest.mark.parametrize("writer", FORMATS[3:])
def test_each_format_shows_what_it_lacks(rig, writer: str):
    faults = ["drop@4", "truncate:0.97@8", "short@12", "duplicate@16", "swap@19"]
    played = rig(*faults, writer=writer)
    assert_all_that_came_is_there(played)
    assert played.faults() == {truth.seen_as for truth in played.plan.truths}
    summary = played.slots.summary()
    assert (summary.missing, summary.partial) == ((4,), (8, 12))


def test_a_header_that_is_cut_off_makes_its_volume_short(rig):
    played = rig("truncate:0.1@8", writer="ge-slices")
    assert_all_that_came_is_there(played)
    told = [a for a in played.arrivals if isinstance(a, Fault)]
    assert {(str(f.kind), f.number) for f in told} == {("truncated", None), ("short", 8)}


@pytest.mark.parametrize("seed", range(6))
def test_three_faults_at_once_are_each_recognised(rig, seed: int):
    kinds = [str(k) for k in np.random.default_rng(seed).permutation(list(Mishap))[:3]]
    played = rig(*kinds, seed=seed, writer=["nifti", "mosaic"][seed % 2])
    assert_all_that_came_is_there(played)
    assert {truth.seen_as for truth in played.plan.truths} <= played.faults()


def test_the_slots_end_with_what_is_missing_and_partial(rig):
    played = rig("drop@5", "truncate@12", "short@20")
    summary = played.slots.summary()
    assert (summary.missing, summary.partial) == ((5,), (12, 20))
    assert summary.received == VOLUMES - 3


def test_what_the_player_tells_is_what_it_did(rig):
    played = rig("drop@5", "duplicate@9")
    faults = [t for t in played.told if t["event"] == "fault"]
    assert [(t["kind"], t["numbers"], t["seen_as"]) for t in faults] == [
        ("drop", [5], "missing"),
        ("duplicate", [9], "duplicate"),
    ]
    files = [t for t in played.told if t["event"] == "file"]
    assert sorted(t["number"] for t in files) == sorted([*range(5), *range(6, VOLUMES), 9])
    assert len({t["file"] for t in files}) == len(files)
    assert played.told[-1]["faults"] == {"drop": 1, "duplicate": 1}


def test_the_command_plays_a_run_and_tells_it_as_json_lines(
    small_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = small_run(8)
    words = ["replay", str(path), "--to", str(tmp_path / "to"), "--tr", "1.6", "--speed", "1e6"]
    assert main([*words, "--format", "mosaic", "--fault", "drop@3", "--seed", "2"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [t["event"] for t in told] == ["fault", *["file"] * 7, "done"]
    assert {t["file"] for t in told[1:-1]} == {p.name for p in (tmp_path / "to").iterdir()}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tr", "0"], "--tr must be a finite number of seconds above 0; got 0.0"),
        (["--speed", "-1"], "--speed must be above 0; got -1.0"),
        (["--fault", "explode"], "--fault must be KIND[:AMOUNT][@VOLUME]"),
        (["--fault", "short:5"], "leaves nothing of 5 slices"),
    ],
)
def test_bad_arguments_are_one_sentence(
    small_run: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
):
    assert (
        main(["replay", str(small_run(8)), "--to", str(tmp_path / "to"), "--speed", "1e6", *words])
        == 1
    )
    assert sentence in capsys.readouterr().err


def test_a_run_without_a_tr_needs_one(
    small_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["replay", str(small_run(8, tr_s=0.0)), "--to", str(tmp_path / "to")]) == 1
    assert "states no repetition time; give it with --tr SECONDS" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_left_alone(
    small_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["replay", str(small_run(8)), "--to", str(tmp_path)]) == 1
    assert "is not empty; replay into an empty folder" in capsys.readouterr().err


def test_a_file_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = tmp_path / "one.nii"
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), "i2"), np.eye(4)), one)
    assert main(["replay", str(one), "--to", str(tmp_path / "to"), "--tr", "1"]) == 1
    assert "expected a single-file NIfTI (X, Y, Z, T)" in capsys.readouterr().err


def test_two_processes_at_a_real_clock(small_run: Callable[..., Path], tmp_path: Path):
    """The one test that waits: 10 volumes at 20 ms, watched through the operating system."""
    path, folder = small_run(10), tmp_path / "incoming"
    folder.mkdir()
    source = FolderSource(folder, pace_s=2.0)  # patience for a busy machine
    slots = Slots(tr_s=TR_S, pace_s=2.0, volumes=10)
    code = "import sys; from scanside.runtime.cli import main; raise SystemExit(main(sys.argv[1:]))"
    words = ["replay", str(path), "--to", str(folder), "--tr", "1.6", "--speed", "80"]
    command = [sys.executable, "-P", "-c", code, *words, "--in-place"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as scanner:
        receiver = Arrivals(source, slots)
        frames = [arrival for arrival in receiver if isinstance(arrival, Frame)]
        told = [json.loads(line) for line in (scanner.communicate()[0] or "").splitlines()]
    source.close()
    assert scanner.returncode == 0
    assert receiver.ending is Ending.COMPLETE
    assert [frame.number for frame in frames] == list(range(10))
    # both processes read the same monotonic clock of the system
    written = {t["number"]: t["at_s"] for t in told if t["event"] == "file"}
    assert all(frame.arrived_s < written[frame.number] + 2.0 for frame in frames)
