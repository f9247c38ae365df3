"""The example scripts, run as far as they can be without PsychoPy and RT-Cloud."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np

import scanside.runtime.realtime
from scanside.runtime import Decoder
from scanside.runtime.realtime.files_outlet import FilesOutlet
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation

FOLDER = Path(scanside.runtime.realtime.__path__[0]) / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(seq: int, caption: str, **more: Any) -> str:
    message = {"seq": seq, "event": "answer", "trial": seq, "window": "fast", "caption": caption}
    return json.dumps(message | {"confidence": {"value": 0.5}} | more)


def test_the_psychopy_script_gets_each_message_once_and_shows_answers(tmp_path: Path):
    script = load("psychopy_feedback")
    outlet = FilesOutlet(tmp_path / "told")
    told = script.Told(tmp_path / "told")
    assert list(told.new()) == []
    outlet.send(answer(0, "a circle"))
    outlet.send(json.dumps({"seq": 1, "event": "volume", "volume": 4}))
    assert [message["seq"] for message in told.new()] == [0, 1]
    assert list(told.new()) == []
    outlet.send(answer(10_000_000, "a ring"))  # a run that was resumed counts from here
    outlet.send(answer(10_000_001, "a cross", withheld=True))
    messages = list(told.new())
    assert [message["seq"] for message in messages] == [10_000_000, 10_000_001]
    assert [script.shown(message) for message in messages] == ["a ring\n(50% sure, fast)", None]


def test_the_psychopy_script_prints_a_run_to_its_end(tmp_path: Path):
    outlet = FilesOutlet(tmp_path / "told")
    outlet.send(answer(0, "a circle"))
    outlet.send(json.dumps({"seq": 1, "event": "end", "summary": {}}))
    done = subprocess.run(
        [sys.executable, str(FOLDER / "psychopy_feedback.py"), str(tmp_path / "told"), "--print"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "trial 0: a circle\n(50% sure, fast)\n"


class Bids:
    """What the project script asks of RT-Cloud's bidsInterface."""

    def __init__(self, world: SimulatedRun) -> None:
        self.volumes = list(world.volumes())
        self.affine = world.affine
        self.opened: dict[str, Any] = {}

    def initDicomBidsStream(self, folder: str, pattern: str, size: int, **more: Any) -> int:
        self.opened = more
        return 1

    def getIncremental(self, stream: int, volIdx: int, timeout: float) -> SimpleNamespace:
        data = self.volumes[volIdx - 1][..., None]
        return SimpleNamespace(image=nib.Nifti1Image(np.asarray(data, np.float32), self.affine))

    def closeStream(self, stream: int) -> None:
        self.volumes = []


class Subject:
    """And of its subjInterface."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def setResultDict(self, name: str, values: dict[str, Any]) -> None:
        self.told[name] = values


def test_the_rt_cloud_script_decodes_trials_of_a_run():
    script = load("rtcloud_project")
    world = SimulatedRun(
        Simulation(shape=(22, 26, 20), voxel_mm=(7.0, 7.0, 7.0), volumes=22, gap_s=11.0)
    )
    cfg = SimpleNamespace(
        subjectName="001", taskName="scenes", runNum=1, imgDir=".", dicomNamePattern="{TR}.dcm",
        minExpectedDicomSize=0, numVolumes=22, trS=1.6, onsetsS=[8.0, 20.0],
    )  # fmt: skip
    bids, subject = Bids(world), Subject()
    with Decoder.open("reference", threads=1) as decoder:
        told = script.do_run(cfg, bids, subject, decoder)
    assert bids.opened == {"anonymize": True, "subject": "001", "task": "scenes", "run": 1}
    assert list(subject.told) == ["trial-0", "trial-1"]
    assert list(subject.told.values()) == told


def test_activity_is_the_percent_change_after_an_onset():
    script = load("rtcloud_project")
    volumes = [np.full((2, 2, 2), 100.0) for _ in range(20)]
    for number in (10, 11, 12):  # 4.5 s to 9 s after an onset at 5.5 s
        volumes[number] = np.full((2, 2, 2), 103.0)
    np.testing.assert_allclose(script.activity(volumes, 1.0, 5.5)[0, 0, 0], 3 * 3 / 4, rtol=1e-6)
