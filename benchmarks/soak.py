"""Does a run survive everything at once, and does it stay the same size for hours?

    python benchmarks/soak.py --json benchmarks/results/soak.json

Four parts, each checked before anything is written down:

- faults: each kind alone and three at once, by many seeds. Nothing that arrived may be lost, every
  fault must be named in the summary, answers that a fault cannot touch must be those of the run
  without it;
- kills: `kill -9` at random moments of a live run, begun again until it is over. The answers must
  be those of a run that was left alone;
- hours: volumes of four hours in runs of forty minutes, played as fast as they are taken. The last
  run may take no more memory than the second, nor its end more than its beginning, within 2 %. The
  first takes less: when it ends, large arrays are freed for the first time, and malloc keeps such
  memory from then on. What it keeps is told too.
- latency: runs of 200 volumes on two grids, twice as fast as real, every answer with preview,
  caption and image within a deadline of one TR. No deadline may be missed.

Faults run at a simulated clock, kills against a second process that plays the scanner, latency in
real time on a machine that must be idle. `--part` runs one of them; `--seeds`, `--kills` and
`--volumes` make it shorter.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, write

from scanside.runtime import Decoder
from scanside.runtime.realtime.faults import FaultRequest, Mishap, plan_run
from scanside.runtime.realtime.folder_source import FolderSource
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.memory import Memory
from scanside.runtime.realtime.replay import Manner, Player
from scanside.runtime.realtime.run import Run
from scanside.runtime.realtime.run_file import RunFile
from scanside.runtime.realtime.run_setup import RunRequest, complete_config
from scanside.runtime.realtime.session_config import SessionConfig
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation
from scanside.runtime.realtime.source import Arrival
from scanside.runtime.realtime.volume_writer import NiftiWriter

TR_S = 1.6
SMALL = Simulation(
    shape=(22, 26, 20), voxel_mm=(7.0, 7.0, 7.0), volumes=48, gap_s=11.0, noise_percent=0.2
)
CODE = "import sys; from scanside.runtime.cli import main; raise SystemExit(main(sys.argv[1:]))"
LOST = {Mishap.DROP, Mishap.TRUNCATE, Mishap.SHORT}
RECOVERED = {Mishap.DUPLICATE, Mishap.SECOND_SERIES, Mishap.CLOCK_SKEW, Mishap.STALL}
"""Faults after which the run's own volumes have come in their order, so that no answer changes."""
GRIDS = {"64x64x36": (3.0, 3.0, 3.6), "81x104x83": (1.8, 1.8, 1.8)}
SPEED = 2.0
RUN_VOLUMES = 1500
"""Of a long run: 40 minutes."""
Said = dict[tuple[int, int], tuple[str, str | None]]


class Rig:
    """A scanner with faults and a session, at one simulated clock."""

    def __init__(
        self, decoder: Decoder, recorded: Path, folder: Path, faults: list[str], seed: int
    ) -> None:
        self.now_s = 1000.0
        self.out = folder / "out"
        requests = [FaultRequest.parse(text) for text in faults]
        self.plan = plan_run(SMALL.volumes, requests, seed)
        incoming = folder / "incoming"
        run, manner = RunFile(recorded), Manner(tr_s=TR_S)
        self.player = Player(
            run, self.plan, NiftiWriter(), incoming, manner, clock=self.clock, sleep=self.sleep
        )
        request = RunRequest(
            source=str(incoming),
            events=str(recorded.with_name("run_events.tsv")),
            out=self.out,
            threads=1,
        )
        self.config = config(SMALL.volumes)

        def source(memory: Memory) -> FolderSource:
            return FolderSource(
                incoming, pace_s=TR_S, watch=False, rescan_trs=0.0, clock=self.clock
            )

        self.run = Run(decoder, request, self.config, clock=self.clock, source=source)

    def clock(self) -> float:
        """Seconds that only the rig lets pass."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass; the session acts on what comes."""
        end = self.now_s + seconds
        while self.now_s < end:
            self.now_s = min(self.now_s + 0.2 * TR_S, end)
            self.run.session.step(0.0)

    def play(self) -> dict[str, Any]:
        """The whole run; its summary."""
        for _ in self.player.play():
            self.run.session.step(0.0)
        while not self.run.session.ending:
            self.sleep(TR_S)
        return self.run.finish()


def config(volumes: int) -> SessionConfig:
    """Captions only: they are what is compared."""
    return SessionConfig(
        tr_s=TR_S, volumes=volumes, tasks=("caption",), prompt="none", deadline_s=1e6
    )


def said(out: Path, attempt: int = 0) -> Said:
    """State and caption of each answer of an attempt."""
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    keys = [(row["attempt"], row["trial"], row["revision"]) for row in rows]
    check(len(set(keys)) == len(keys), f"{out}: an answer was given twice")
    return {
        (row["trial"], row["revision"]): (row["state"], row.get("caption"))
        for row in rows
        if row["attempt"] == attempt
    }


def check(holds: bool, what: str) -> None:
    """No figure is worth anything once something does not hold."""
    if not holds:
        raise SystemExit(f"failed: {what}")


def fault_sets(seeds: int) -> Iterator[tuple[int, list[str]]]:
    """Each kind alone, then three at once, in turn."""
    kinds = [str(kind) for kind in Mishap]
    rng = random.Random(0)
    for seed in range(seeds):
        if seed % 2 == 0:
            yield seed, [kinds[(seed // 2) % len(kinds)]]
        else:
            yield seed, rng.sample([k for k in kinds if k != Mishap.RESTART], 3)


def faults_part(decoder: Decoder, folder: Path, seeds: int) -> dict[str, Any]:
    """Every fault by many seeds."""
    recorded = folder / "run_bold.nii"
    SimulatedRun(SMALL).write(recorded)
    clean = Rig(decoder, recorded, folder / "clean", [], 0)
    clean.play()
    wanted, counts = said(clean.out), Counter[str]()
    onsets = [stimulus.onset_s for stimulus in clean.run.session.parts.stimuli]
    same = total = 0
    for seed, faults in fault_sets(seeds):
        # a header that is cut off bears no number, and a small file is mostly header
        asked = ["truncate:0.9" if text == Mishap.TRUNCATE else text for text in faults]
        rig = Rig(decoder, recorded, folder / f"faults-{seed}", asked, seed)
        summary = rig.play()
        name = f"seed {seed}, {', '.join(faults)}"
        for truth in rig.plan.truths:
            check(str(truth.seen_as) in summary["faults"], f"{name}: {truth.seen_as} not named")
            counts[str(truth.kind)] += 1
        series = max(d.series for d in rig.plan.deliveries if d.series != 1)
        arrived = {
            d.number for d in rig.plan.deliveries if d.content == "whole" and d.series == series
        }
        check(summary["volumes"]["received"] == len(arrived), f"{name}: volumes were lost")
        kinds = {truth.kind for truth in rig.plan.truths}
        found = said(rig.out, int(Mishap.RESTART in kinds))
        check(set(found) == set(wanted), f"{name}: answers were lost")
        first = min(min(truth.numbers) for truth in rig.plan.truths)
        every = kinds <= RECOVERED | {Mishap.RESTART}
        for key, answer in wanted.items():
            end = (onsets[key[0]] + rig.config.windows_s[key[1]]) / TR_S
            if every or end < first:
                check(found[key] == answer, f"{name}: answer {key} changed")
            same += found[key] == answer
            total += 1
    return {"runs": seeds, "faults": dict(counts), "answers": total, "same_caption": same}


def kills_part(folder: Path, kills: int) -> dict[str, Any]:
    """A live run that is killed again and again."""
    recorded = folder / "run_bold.nii"
    if not recorded.exists():
        SimulatedRun(SMALL).write(recorded)
    rng = random.Random(0)
    wanted: Said | None = None
    done = resumes = 0
    for round_ in itertools.count():
        incoming, out = folder / f"live-{round_}", folder / f"killed-{round_}"
        incoming.mkdir()
        watch = [
            *("watch", "reference", "--source", f"folder:{incoming}", "--out", str(out)),
            *("--events", str(recorded.with_name("run_events.tsv")), "--tr", str(TR_S)),
            *("--volumes", str(SMALL.volumes), "--task", "caption", "--prompt", "none"),
            *("--threads", "1", "--deadline", "1000"),
        ]
        session = start(watch)
        while not (out / "journal.jsonl").exists():
            check(session.poll() is None, "watch ended before the run")
            time.sleep(0.01)
        player = start(["replay", str(recorded), "--to", str(incoming), "--speed", "8"])
        while wanted is not None and done < kills:
            time.sleep(rng.uniform(0.05, 3.0))
            if session.poll() is not None:
                break
            os.kill(session.pid, signal.SIGKILL)
            session.wait()
            done += 1
            session = start(watch)
        check(session.wait() == 0, f"watch ended with {session.returncode}")
        check(player.wait() == 0, f"replay ended with {player.returncode}")
        summary = json.loads((out / "summary.json").read_text())
        resumes += summary["resumed"]
        if wanted is None:
            wanted = said(out)
        check(said(out) == wanted, f"round {round_}: answers differ after {done} kills")
        if done >= kills:
            return {"kills": done, "runs": round_, "resumed": resumes, "answers": len(wanted)}
    raise AssertionError


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    command = [sys.executable, "-P", "-c", CODE, *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def latency_part(decoder: Decoder, folder: Path) -> dict[str, Any]:
    """From a volume's arrival to each answer, on the run's own clock."""
    found: dict[str, Any] = {}
    for grid, voxel_mm in GRIDS.items():
        shape = tuple(int(size) for size in grid.split("x"))
        recorded = folder / f"{grid}_bold.nii"
        events = SimulatedRun(Simulation(shape=shape, voxel_mm=voxel_mm, noise_percent=0.3)).write(
            recorded
        )
        out = folder / f"latency-{grid}"
        request = RunRequest(source=f"file:{recorded}", events=str(events), out=out)
        given = {"tr_s": None, "volumes": None, "speed": SPEED, "deadline_s": TR_S}
        summary = Run(decoder, request, complete_config(request, given)).play()
        check(summary["faults"] == {}, f"{grid}: faults {sorted(summary['faults'])}")
        found[grid] = {
            "missed_deadlines": summary["missed_deadlines"],
            "answers": summary["answers"]["answered"],
            "latency_ms": summary["latency_ms"],
        }
        recorded.unlink()
    return found


class Endless:
    """The same volumes again and again, as fast as they are taken."""

    def __init__(self, volumes: list[np.ndarray], affine: np.ndarray, total: int) -> None:
        self.exhausted = False
        self._volumes, self._affine, self._total = volumes, affine, total
        self._number = 0

    def poll(self, timeout_s: float) -> list[Arrival]:
        """One volume."""
        number = self._number
        self._number += 1
        self.exhausted = self._number >= self._total
        return [
            Frame(
                number=number,
                data=self._volumes[number % len(self._volumes)],
                affine=self._affine,
                tr_s=TR_S,
                series="endless",
                arrived_s=time.perf_counter(),
            )
        ]

    def close(self) -> None:
        """Nothing to give up."""


def hours_part(decoder: Decoder, folder: Path, volumes: int) -> dict[str, Any]:
    """Resident memory over runs of forty minutes, one after another in one process."""
    check(volumes >= 2 * RUN_VOLUMES, f"'hours' compares runs: play {2 * RUN_VOLUMES} volumes")
    simulated = SimulatedRun(SMALL)
    held = list(simulated.volumes())
    length = RUN_VOLUMES
    events = folder / "long_events.tsv"
    rows = [f"{onset:.1f}\t3\tscene" for onset in np.arange(3.0, (length - 4) * TR_S, 12.3)]
    events.write_text("\n".join(["onset\tduration\ttrial_type", *rows]) + "\n")
    kilobytes: list[list[int]] = []
    answered = 0
    summary: dict[str, Any] = {}
    for index in range(volumes // length):
        request = RunRequest(
            source=".", events=str(events), out=folder / f"long-{index}", threads=1
        )
        run = Run(
            decoder,
            request,
            config(length),
            source=lambda memory: Endless(held, simulated.affine, length),
        )
        kilobytes.append([])
        while not run.session.ending:
            run.session.step(0.0)
            run.session.settle()  # faster than real: answers must not pile up
            kilobytes[-1].append(resident_kb())
        summary = run.finish()
        check(summary["volumes"]["received"] == length, "volumes were lost")
        answered += summary["answers"]["answered"]
        del run  # the next one begins when this one is gone, as it does in a process of its own
    most = [max(run_kb[length // 5 :]) for run_kb in kilobytes]
    within = kilobytes[-1][-1] / kilobytes[-1][length // 5] - 1
    grown = most[-1] / most[1] - 1
    check(max(grown, within) < 0.02, f"memory grew by {100 * max(grown, within):.1f} %")
    return {
        "volumes": len(kilobytes) * length,
        "hours": round(len(kilobytes) * length * TR_S / 3600, 2),
        "runs": len(kilobytes),
        "answers": answered,
        "resident_mb": [round(kb / 1e3, 1) for kb in most],
        "grown_percent": {
            "from_first_to_second_run": round(100 * (most[1] / most[0] - 1), 2),
            "from_second_to_last_run": round(100 * grown, 2),
            "within_the_last_run": round(100 * within, 2),
        },
        "latency_ms": summary["latency_ms"],
    }


def resident_kb() -> int:
    """Memory of this process that is in use."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") // 1000


def main() -> None:
    """The parts, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=("faults", "kills", "hours", "latency"))
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--volumes", type=int, default=9000, help="4 hours of TR 1.6 s: 9000")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    parts = args.part or ["faults", "kills", "hours", "latency"]
    result: dict[str, Any] = {"question": "real-time runs under faults, kills and for hours"}
    result |= machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Decoder.open("reference", threads=1) as decoder:
            if "faults" in parts:
                result["faults"] = faults_part(decoder, folder, args.seeds)
            if "hours" in parts:
                result["hours"] = hours_part(decoder, folder, args.volumes)
        if "latency" in parts:
            with Decoder.open("reference", threads=2) as decoder:
                result["latency"] = latency_part(decoder, folder)
        if "kills" in parts:
            result["kills"] = kills_part(folder, args.kills)
    write(result, args.json)


if __name__ == "__main__":
    main()
