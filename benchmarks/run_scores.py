"""Does a run decode as well as betas of the same noise that were made offline?

    python benchmarks/run_scores.py --json benchmarks/results/run_scores.json

Simulated runs of the reference world: every trial shows a held-out scene to a subject of the
training set, and the scanner alone adds noise, drift and motion. The same volumes are answered

- online: the run's fast and refined captions, from what was known at the time;
- offline: least squares separate over the whole run, with motion and the noise components of all of
  it, normalised by all of its trials;
- offline, motion not regressed: the same without the six parameters of motion, of aligned volumes;
- offline, matched: offline, with as much of the run's own noise as the fast or the refined beta of
  the trial differs from it (offline_betas.py);
- online without motion correction, which must say so in its summary;
- before: the activity itself, without a scanner.

A caption is right if it names colour and shape of every object and no other. About eight minutes on
one core; it measures no time and may share the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from offline_betas import WholeRun
from timing import machine, write

from scanside.export.reference.features import encode
from scanside.export.reference.noise import Brain
from scanside.export.reference.scenes import Scene, draw_scenes
from scanside.export.reference.texts import caption, names_every_object
from scanside.export.reference.trials import to_nifti
from scanside.export.reference.world import SEEN, Subject
from scanside.runtime import Decoder
from scanside.runtime.demo.trials import Trial
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.run import Run
from scanside.runtime.realtime.run_setup import RunRequest
from scanside.runtime.realtime.session_config import SessionConfig
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation
from scanside.runtime.realtime.source import Arrival

INERTIA = 20
"""The head moves far and slowly: a jerk spoils volumes, corrected or not."""
OFFLINE = "offline"
REVISIONS = ("fast", "refined")
Answers = dict[int, str]
"""Captions by trial."""


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A run of one subject, and what it shows."""

    run: SimulatedRun
    frames: list[Frame]
    scenes: dict[str, Scene]
    """By the name of the trial that shows it."""
    events: Path


class Played:
    """The frames of a scan, as fast as they are taken."""

    def __init__(self, frames: list[Frame]) -> None:
        self.exhausted = False
        self._frames = iter(frames)
        self._left = len(frames)

    def poll(self, timeout_s: float) -> list[Arrival]:
        """The next one."""
        self._left -= 1
        self.exhausted = self._left == 0
        return [replace(next(self._frames), arrived_s=time.perf_counter())]

    def close(self) -> None:
        """Nothing to give up."""


def scan(subject: str, seed: int, simulation: Simulation, folder: Path) -> Scan:
    """Simulate a run in which a subject sees held-out scenes, each of them once."""
    count = int(simulation.volumes * simulation.tr_s / (0.75 * simulation.gap_s)) + 1
    shown = draw_scenes(count, np.random.default_rng([seed, 9]), held_out=True)
    brain = Brain(Subject(subject))
    trials: list[Trial] = []
    scenes: dict[str, Scene] = {}
    for i in range(count):
        name = f"scene-{i:02d}"
        volume = brain.signal(encode(shown[i : i + 1]))[0] * brain.subject.brain
        nib.save(to_nifti(volume, brain.subject), folder / f"{name}.nii.gz")
        scenes[name] = shown.named(i)
        trials.append(
            Trial(
                name=name,
                subject=subject,
                seen=True,
                average_of=1,
                volume=folder / f"{name}.nii.gz",
                scene=folder / f"{name}.png",
                caption=caption(scenes[name]),
            )
        )
    run = SimulatedRun(simulation, trials)
    frames = [
        Frame(number=n, data=data, affine=run.affine, series="run", arrived_s=0.0)
        for n, data in enumerate(run.volumes())
    ]
    events = folder / "events.tsv"
    rows = [f"{s.onset_s:g}\t{s.duration_s:g}\t{s.name}" for s in run.stimuli]
    events.write_text("\n".join(["onset\tduration\ttrial_type", *rows]) + "\n")
    return Scan(run, frames, scenes, events)


def config(scan: Scan, correct_motion: bool) -> SessionConfig:
    """Captions, without deadline."""
    return SessionConfig(
        tr_s=scan.run.config.tr_s,
        volumes=len(scan.frames),
        tasks=("caption",),
        prompt="none",
        deadline_s=1e6,
        correct_motion=correct_motion,
    )


def online(
    decoder: Decoder, scan: Scan, out: Path, correct_motion: bool
) -> tuple[list[Answers], list[str]]:
    """Captions of each revision, and what the run notes."""
    request = RunRequest(source=".", events=str(scan.events), out=out, threads=1)
    settings = config(scan, correct_motion)
    run = Run(decoder, request, settings, source=lambda memory: Played(scan.frames))
    while not run.session.ending:
        run.session.step(0.0)
        run.session.settle()
    summary = run.finish()
    if summary["volumes"]["received"] != len(scan.frames) or summary["faults"]:
        raise SystemExit(f"volumes were lost, or {sorted(summary['faults'])}; not scored")
    answers: list[Answers] = [{}, {}]
    for line in (out / "answers.jsonl").read_text().splitlines():
        row = json.loads(line)
        answers[row["revision"]][row["trial"]] = row.get("caption", "")
    return answers, summary["notes"]


def measure(
    decoder: Decoder, seed: int, simulation: Simulation, folder: Path
) -> dict[str, list[bool]]:
    """Whether the caption is right, of each trial and way."""
    scanned = scan(SEEN[seed % len(SEEN)], seed, simulation, folder)
    corrected, _ = online(decoder, scanned, folder / "online", True)
    moved, notes = online(decoder, scanned, folder / "moved", False)
    if not any("motion was not corrected" in note for note in notes):
        raise SystemExit("a run without motion correction does not say so")
    whole = WholeRun(decoder, config(scanned, True), scanned.run.stimuli, scanned.frames)
    betas = whole.betas()
    matched = [whole.captions(noisy) for noisy in whole.with_noise_of_run(betas)]
    before = {
        trial: decoder.decode(truth.volume, tasks=("caption",)).caption or ""
        for trial, truth in enumerate(scanned.run.truths)
    }
    ways: dict[str, Answers] = {
        "before": before,
        OFFLINE: whole.captions(betas),
        f"{OFFLINE}, motion not regressed": whole.captions(whole.betas(motion=False)),
    }
    for revision, name in enumerate(REVISIONS):
        ways[f"{name}: online"] = corrected[revision]
        ways[f"{name}: offline, matched"] = matched[revision]
        ways[f"{name}: online, motion not corrected"] = moved[revision]
    scene_of = [scanned.scenes[truth.name] for truth in scanned.run.truths]
    return {
        way: [
            names_every_object(answers.get(trial, ""), scene)
            for trial, scene in enumerate(scene_of)
        ]
        for way, answers in ways.items()
    }


def main() -> int:
    """Play, score, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.2, help="percent, of each voxel")
    parser.add_argument("--motion", type=float, default=3.0, help="mm and degrees")
    parser.add_argument("--bundle", default="reference")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    right: dict[str, list[bool]] = {}
    with Decoder.open(args.bundle, threads=1) as decoder:
        bundle = decoder.bundle.sha256
        for seed in range(args.runs):
            simulation = Simulation(
                volumes=args.volumes,
                noise_percent=args.noise,
                motion_mm=args.motion,
                inertia=INERTIA,
                seed=seed,
            )
            with tempfile.TemporaryDirectory() as folder:
                for way, found in measure(decoder, seed, simulation, Path(folder)).items():
                    right.setdefault(way, []).extend(found)
            print(f"run {seed}:", {way: round(float(np.mean(r)), 3) for way, r in right.items()})
    result = {
        "question": "decoding scores of simulated runs, online and offline",
        **about,
        "bundle": bundle[:12],
        "simulation": {
            "runs": args.runs,
            "volumes": args.volumes,
            "noise_percent": args.noise,
            "motion_mm": args.motion,
            "inertia": INERTIA,
        },
        "rows": rows(right),
    }
    write(result, args.json)
    return 0


def rows(right: dict[str, list[bool]]) -> list[dict[str, Any]]:
    """The score of each way in percent, and how far it is from its rivals."""
    found: list[dict[str, Any]] = []
    for way, marks in right.items():
        score = 100 * float(np.mean(marks))
        row: dict[str, Any] = {"way": way, "trials": len(marks), "right_percent": round(score, 1)}
        if ": online" in way:
            rivals = {"matched": f"{way.partition(':')[0]}: offline, matched", "offline": OFFLINE}
            for name, rival in rivals.items():
                pairs = np.subtract(marks, right[rival], dtype=float)
                row[f"points_beside_{name}"] = round(100 * float(pairs.mean()), 1)
                error = 100 * float(pairs.std()) / math.sqrt(len(pairs))
                row[f"standard_error_beside_{name}"] = round(error, 1)
        found.append(row)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
