"""A run that is replayed over a network: what arrives is the truth that the replay told.

The sockets are real. Time is simulated, as in `test_replay.py`: it stands still until the receiver
has what was sent, so nothing depends on how busy the machine is.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scanside.benchmarks.malformed import free_port
from scanside.runtime.cli import main
from scanside.runtime.errors import InputError
from scanside.runtime.realtime.address import Address
from scanside.runtime.realtime.afni_sender import AfniSender
from scanside.runtime.realtime.afni_source import AfniSource
from scanside.runtime.realtime.arrivals import Arrivals
from scanside.runtime.realtime.dicom_sender import DicomSender
from scanside.runtime.realtime.dicom_source import DicomSource
from scanside.runtime.realtime.faults import FaultRequest, Mishap, plan_run
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.network_player import NetworkPlayer
from scanside.runtime.realtime.replay import Manner
from scanside.runtime.realtime.run_file import RunFile
from scanside.runtime.realtime.slot_state import Ending
from scanside.runtime.realtime.slots import Slots
from scanside.runtime.realtime.source import Arrival, Fault, FaultKind
from scanside.runtime.realtime.writers import make_writer
from scanside.runtime.realtime.zmq_sender import ZmqSender
from scanside.runtime.realtime.zmq_source import ZmqSource

TR_S = 1.6
VOLUMES = 24
WAIT_S = 20.0
"""For what is on its way through a socket; it comes at once."""
SENDERS: dict[str, Callable[[Address], Any]] = {
    "afni": AfniSender,
    "afni-by-slice": lambda address: AfniSender(address, by_slice=True),
    "zmq": ZmqSender,
    "dicom": lambda address: DicomSender(address, make_writer("mosaic", "run")),
    "dicom-slices": lambda address: DicomSender(address, make_writer("ge-slices", "run")),
    "dicom-enhanced": lambda address: DicomSender(address, make_writer("siemens-enhanced", "run")),
}
SOURCES: dict[str, Callable[..., Any]] = {
    "afni": lambda address, clock: AfniSource(address, pace_s=TR_S, clock=clock),
    "zmq": lambda address, clock: ZmqSource(address, clock=clock),
    "dicom": lambda address, clock: DicomSource(address, pace_s=TR_S, clock=clock),
}
EACH_FAULT = [
    *(("afni", kind) for kind in sorted(AfniSender.mishaps)),
    *((way, kind) for way in ("zmq", "dicom") for kind in Mishap),
]


class Rig:
    """A scanner and a receiver at one simulated clock, with a socket between them."""

    def __init__(self, path: Path, way: str, faults: list[str], seed: int = 0):
        self.now_s = 1000.0
        self.run = RunFile(path)
        self.arrivals: list[Arrival] = []
        self.plan = plan_run(VOLUMES, [FaultRequest.parse(text) for text in faults], seed)
        address = Address("127.0.0.1", free_port())
        self.source = SOURCES[way.split("-")[0]](address, self.clock)
        self.receiver = Arrivals(self.source, Slots(tr_s=TR_S, volumes=VOLUMES), self.clock)
        self.player = NetworkPlayer(
            self.run,
            self.plan,
            SENDERS[way](address),
            Manner(tr_s=TR_S),
            clock=self.clock,
            sleep=self.sleep,
        )

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        end = self.now_s + seconds
        while self.now_s < end:
            self.now_s = min(self.now_s + 0.15 * TR_S, end)
            self.arrivals += self.receiver.step(0.0)

    def play(self) -> None:
        for telling in self.player.play():
            if telling["event"] == "volume":
                # what was sent is a frame or a fault, as soon as it is through
                self.arrivals += self.receiver.step(WAIT_S)
        while not self.receiver.ending:
            self.sleep(TR_S)

    def frames(self) -> list[Frame]:
        """Those of the newest attempt."""
        kinds = [a.kind if isinstance(a, Fault) else None for a in self.arrivals]
        begin = kinds.index(FaultKind.RESTART) if FaultKind.RESTART in kinds else 0
        return [a for a in self.arrivals[begin:] if isinstance(a, Frame)]

    def faults(self) -> set[FaultKind]:
        return {arrival.kind for arrival in self.arrivals if isinstance(arrival, Fault)}


@pytest.fixture
def rig(small_run: Callable[..., Path]) -> Iterator[Callable[..., Rig]]:
    threads = threading.active_count()
    made: list[Rig] = []

    def make(way: str, *faults: str, seed: int = 0) -> Rig:
        made.append(Rig(small_run(VOLUMES), way, list(faults), seed))
        made[-1].play()
        return made[-1]

    yield make
    for one in made:
        one.source.close()
        one.source.close()  # may be called twice
    assert threading.active_count() <= threads


def canonical(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.Nifti1Image(data, affine))


def assert_all_that_came_is_there(rig: Rig):
    last = max(d.series for d in rig.plan.deliveries if d.series != 1)
    whole = {d.number for d in rig.plan.deliveries if d.content == "whole" and d.series == last}
    frames = rig.frames()
    assert sorted(frame.number for frame in frames) == sorted(whole)
    recorded = list(rig.run.read())
    for frame in frames:
        # slices that come one by one may be stacked the other way, with the affine to it
        found = canonical(frame.data, frame.affine)
        wanted = canonical(recorded[frame.number], rig.run.affine)
        np.testing.assert_array_equal(found.dataobj, wanted.dataobj)
        np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-4)  # digits in headers


@pytest.mark.parametrize("way", SENDERS)
def test_a_run_arrives_as_it_was_recorded(rig, way: str):
    played = rig(way)
    assert_all_that_came_is_there(played)
    assert played.receiver.ending is Ending.COMPLETE
    assert [frame.number for frame in played.frames()] == list(range(VOLUMES))
    assert played.faults() == set()
    assert played.frames()[0].tr_s == pytest.approx(TR_S)
    assert sum(played.source.refused.values()) == 0


@pytest.mark.parametrize(("way", "kind"), EACH_FAULT, ids=lambda value: str(value))
def test_each_fault_is_recognised_by_its_name_and_costs_nothing_else(rig, way: str, kind: Mishap):
    played = rig(way, str(kind))
    assert_all_that_came_is_there(played)
    (truth,) = played.plan.truths
    named = [a for a in played.arrivals if isinstance(a, Fault) and a.kind is truth.seen_as]
    if kind not in (Mishap.RESTART, Mishap.SECOND_SERIES):
        assert {fault.number for fault in named} == set(truth.numbers)
    besides = {Mishap.DELAY: {FaultKind.OUT_OF_ORDER}, Mishap.RESTART: {FaultKind.STALL}}
    assert {truth.seen_as} <= played.faults() <= {truth.seen_as} | besides.get(kind, set())


def test_three_faults_at_once_are_each_recognised(rig):
    played = rig("zmq", "drop", "second-series", "truncate", seed=3)
    assert_all_that_came_is_there(played)
    assert {truth.seen_as for truth in played.plan.truths} <= played.faults()


def test_a_fault_that_a_protocol_cannot_have_is_refused(small_run: Callable[..., Path]):
    address = Address("127.0.0.1", free_port())
    source = AfniSource(address, pace_s=TR_S)
    plan = plan_run(VOLUMES, [FaultRequest.parse("drop@3")])
    with pytest.raises(InputError, match="drop cannot happen over afni; it has restart, stall"):
        NetworkPlayer(RunFile(small_run(VOLUMES)), plan, AfniSender(address), Manner(tr_s=TR_S))
    source.close()


@pytest.mark.parametrize("way", SOURCES)
def test_the_command_plays_to_a_receiver(
    small_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], way: str
):
    path, port = small_run(8), free_port()
    source = SOURCES[way](Address("127.0.0.1", port), time.perf_counter)
    words = ["replay", str(path), "--to", f"{way}:{port}", "--speed", "1e6"]
    assert main(words) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [t["event"] for t in told] == ["volume"] * 8 + ["done"]
    frames: list[Arrival] = []
    while len(frames) < 8:
        came = source.poll(WAIT_S)
        assert came, "nothing more came"
        frames += came
    source.close()
    assert [frame.number for frame in frames if isinstance(frame, Frame)] == list(range(8))


@pytest.mark.parametrize("way", SOURCES)
def test_the_command_says_when_nobody_listens(
    small_run: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
):
    monkeypatch.setattr("scanside.runtime.realtime.zmq_sender._HELLO_MS", 5_000)
    assert main(["replay", str(small_run(8)), "--to", f"{way}:{free_port()}"]) == 1
    error = capsys.readouterr().err
    assert "start the receiver" in error or "nobody listens" in error


def test_a_format_that_is_not_dicom_cannot_go_to_a_node(
    small_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    words = ["replay", str(small_run(8)), "--to", "dicom:104", "--format", "nifti"]
    assert main(words) == 1
    assert "must be one of DICOM to be sent to dicom:104" in capsys.readouterr().err
