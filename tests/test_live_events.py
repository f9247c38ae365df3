"""A whole `watch` whose trials come over LSL while it runs, beside one that read them from a file.

The stimulus computer stamps its markers, so what an answer knows follows from the stamps and not
from when a marker or a volume happens to arrive. That is why this test may hurry.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pylsl
import pytest

from scanside.runtime.cli import main
from scanside.runtime.realtime.lsl_outlet import keep_to_this_machine
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation
from scanside.runtime.realtime.stimuli import Stimulus, read_events

TR_S = 1.6
VOLUMES = 26
WAIT_S = 120.0
"""Far longer than anything here takes, even on a busy machine."""
CLOCK_S = 0.05
"""Error of LSL's estimate of a clock's offset, at most."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulated") / "run_bold.nii"
    SimulatedRun(
        Simulation(shape=(22, 26, 20), voxel_mm=(7.0, 7.0, 7.0), volumes=VOLUMES, gap_s=9.0)
    ).write(path)
    return path


def watch(source: str, events: str, out: Path, *more: str) -> int:
    return main(
        [
            *("watch", "reference", "--source", source, "--events", events, "--out", str(out)),
            *("--task", "caption", "--prompt", "none", "--threads", "1", "--deadline", "1000"),
            *("--no-report", *more),
        ]
    )


def records(out: Path, kind: str) -> list[dict[str, object]]:
    """Whole lines of a journal that may not be there yet."""
    journal = out / "journal.jsonl"
    text = journal.read_text() if journal.exists() else ""
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [row for row in rows if row.get("kind") == kind]


def wait_for(out: Path, kind: str, count: int) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while len(records(out, kind)) < count:
        assert time.monotonic() < give_up_s, f"{len(records(out, kind))} of {count} {kind} records"
        time.sleep(0.002)


def play(
    outlet: pylsl.StreamOutlet, stimuli: list[Stimulus], files: list[Path], folder: Path, out: Path
) -> None:
    """The scanner and the stimulus computer."""
    assert outlet.wait_for_consumers(WAIT_S)
    # so long ago that the first volume can be complete by now
    began_s = pylsl.local_clock() - 1.2 * TR_S
    outlet.push_sample(["go"], timestamp=began_s)
    sent = 0
    for number, file in enumerate(files):
        while number and sent < len(stimuli) and stimuli[sent].onset_s < (number + 1) * TR_S:
            marker = {"trial_type": stimuli[sent].name, "duration": stimuli[sent].duration_s}
            outlet.push_sample([json.dumps(marker)], timestamp=began_s + stimuli[sent].onset_s)
            sent += 1
            wait_for(out, "event", sent)
        os.replace(file, folder / file.name)
        wait_for(out, "volume", number + 1)
    assert sent == len(stimuli)


def test_live_markers_give_the_answers_of_an_events_file(recorded: Path, tmp_path: Path):
    events = recorded.with_name("run_events.tsv")
    from_file = tmp_path / "from-file"
    assert watch(f"file:{recorded}", str(events), from_file, "--speed", "1000") == 0

    keep_to_this_machine()
    name = f"scanside-test-stimuli-{os.getpid()}"
    outlet = pylsl.StreamOutlet(pylsl.StreamInfo(name, "Markers", 1, 0.0, "string", name))
    played, folder, live = tmp_path / "played", tmp_path / "incoming", tmp_path / "live"
    folder.mkdir()
    assert main(["replay", str(recorded), "--to", str(played), "--speed", "1000"]) == 0
    codes: list[int] = []
    more = ("--trigger", "go", "--tr", str(TR_S), "--volumes", str(VOLUMES))
    watching = threading.Thread(
        target=lambda: codes.append(watch(f"folder:{folder}", f"lsl:{name}", live, *more))
    )
    watching.start()
    play(outlet, read_events(events), sorted(played.iterdir()), folder, live)
    watching.join()
    assert codes == [0]

    one, other = (
        {
            (row["trial"], row["revision"]): row
            for row in map(json.loads, (out / "answers.jsonl").read_text().splitlines())
        }
        for out in (from_file, live)
    )
    assert one.keys() == other.keys()
    assert len(one) == 2 * len(read_events(events))
    for key, row in one.items():
        found = other[key]
        assert (found["state"], found["trial_type"]) == (row["state"], row["trial_type"])
        assert found["onset_s"] == pytest.approx(row["onset_s"], abs=CLOCK_S)
        if row["state"] != "answered":
            continue
        beta = f"betas/attempt-0-trial-{key[0]:04d}-revision-{key[1]}.npy"
        betas = [np.load(out / beta)[0] for out in (from_file, live)]
        # a response changes by a third of its height in a second at most
        assert np.std(betas[1] - betas[0]) < CLOCK_S * np.std(betas[0]), key
