"""What does a subscriber that stops reading, dies, floods or sends garbage cost the loop?

    python benchmarks/subscribers.py --json benchmarks/results/subscribers.json

A run of 1,000 volumes is played at ten a second, with a caption for every answer, and told over
WebSocket. Conditions take turns in short runs of one process, clients are processes of their own:

- none: nobody subscribes;
- reads: one reads everything, and checks that each message comes once and in order;
- stops: four subscribe and never read;
- dies: four subscribe and break the connection without a word, twenty times a second;
- floods: four subscribe and send small frames as fast as they can, again and again;
- garbage: four send random bytes, before and after they have subscribed.

Correctness first: every volume must be taken in, without a fault, and those who misbehave must be
counted in the sink's report. `worse_ms` is how much later a percentile is than with nobody; the
runtime promises less than 5 ms. The machine must be idle, and have a core for the clients.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, percentiles_ms, write

from scanside.runtime import Decoder
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.run import Run
from scanside.runtime.realtime.run_setup import RunRequest
from scanside.runtime.realtime.session import Session
from scanside.runtime.realtime.session_config import SessionConfig
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation
from scanside.runtime.realtime.source import Arrival

TR_S = 1.6
SMALL = Simulation(shape=(22, 26, 20), voxel_mm=(7.0, 7.0, 7.0), volumes=24, noise_percent=0.2)
CLIENTS = {"none": 0, "reads": 1, "stops": 4, "dies": 4, "floods": 4, "garbage": 4}
COUNTED = {
    "reads": "subscribers",
    "dies": "subscribers",
    "floods": "flooding",
    "garbage": "garbage",
}


class Paced:
    """The same volumes again and again, one each pace, stamped when they are due."""

    def __init__(
        self, volumes: list[np.ndarray], affine: np.ndarray, total: int, pace_s: float
    ) -> None:
        self.exhausted = False
        self._volumes, self._affine = volumes, affine
        self._total, self._pace_s = total, pace_s
        self._number = 0
        self._due_s = 0.0

    def poll(self, timeout_s: float) -> list[Arrival]:
        """The next volume, if it is due within `timeout_s`."""
        self._due_s = self._due_s or time.perf_counter() + self._pace_s
        wait_s = self._due_s - time.perf_counter()
        time.sleep(max(0.0, min(wait_s, timeout_s)))
        if wait_s > timeout_s or self.exhausted:
            return []
        number, due_s = self._number, self._due_s
        self._number, self._due_s = number + 1, due_s + self._pace_s
        self.exhausted = self._number >= self._total
        data = self._volumes[number % len(self._volumes)]
        frame = Frame(
            number=number,
            data=data,
            affine=self._affine,
            tr_s=TR_S,
            series="paced",
            arrived_s=due_s,
        )
        return [frame]

    def close(self) -> None:
        """Nothing to give up."""


def one_run(
    decoder: Decoder, world: SimulatedRun, held: list[np.ndarray], kind: str, args: Any, out: Path
) -> tuple[list[float], list[float], Counter[str]]:
    """Seconds from due to taken in of each volume, and of each answer; the sink's counts."""
    length = args.volumes // args.rounds
    events = out.with_suffix(".tsv")
    onsets = np.arange(3.0, (length - 8) * TR_S, 12.3)
    rows = [f"{onset:.1f}\t3\tscene" for onset in onsets]
    events.write_text("\n".join(["onset\tduration\ttrial_type", *rows]) + "\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    request = RunRequest(source=".", events=str(events), out=out, threads=1, sinks=(f"ws:{port}",))
    config = SessionConfig(
        tr_s=TR_S, volumes=length, speed=args.speed, tasks=("caption",), prompt="none",
        deadline_s=1e6,
    )  # fmt: skip
    pace_s = TR_S / args.speed
    run = Run(
        decoder, request, config, source=lambda memory: Paced(held, world.affine, length, pace_s)
    )
    clients = [client(kind, port) for _ in range(CLIENTS[kind])]
    volumes: list[float] = []

    def show(session: Session) -> None:
        if session.progress.received > len(volumes):
            volumes.append(session.progress.latency_s)

    summary = run.play(show)
    for one in clients:
        one.communicate(timeout=60)
    check(summary["faults"] == {}, f"{kind}: faults {sorted(summary['faults'])}")
    check(summary["volumes"]["received"] == length == len(volumes), f"{kind}: volumes were lost")
    check(not any(one.returncode for one in clients), f"{kind}: a client failed")
    (sink,) = summary["sinks"]
    check(sink["trouble"] is None and not sink["dropped"], f"{kind}: {sink}")
    answers = [
        json.loads(line)["latency_ms"]["total"] / 1e3
        for line in (out / "answers.jsonl").read_text().splitlines()
    ]
    return volumes, answers, Counter(sink.get("counts", {}))


def client(kind: str, port: int) -> subprocess.Popen[bytes]:
    """One client in a process of its own, that ends when the run does; it has come."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("subscriber.py")), kind, str(port)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def check(holds: bool, what: str) -> None:
    """No figure is worth anything once something does not hold."""
    if not holds:
        raise SystemExit(f"failed: {what}")


def main() -> None:
    """All conditions in turn, `--rounds` times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=1000, help="of each condition")
    parser.add_argument("--rounds", type=int, default=4, help="runs that they are divided into")
    parser.add_argument("--speed", type=float, default=16.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine(("aiohttp",))
    world = SimulatedRun(SMALL)
    held = list(world.volumes())
    volumes: dict[str, list[float]] = {kind: [] for kind in CLIENTS}
    answers: dict[str, list[float]] = {kind: [] for kind in CLIENTS}
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in CLIENTS}
    with Decoder.open("reference", threads=1) as decoder, tempfile.TemporaryDirectory() as folder:
        for index in range(args.rounds):
            for kind in CLIENTS:
                out = Path(folder) / f"{kind}-{index}"
                found = one_run(decoder, world, held, kind, args, out)
                volumes[kind] += found[0]
                answers[kind] += found[1]
                counts[kind] += found[2]
    for kind, what in COUNTED.items():
        check(counts[kind][what] > 0, f"{kind}: nothing of {what} in {dict(counts[kind])}")
    quiet = percentiles_ms(volumes["none"])
    rows: list[dict[str, Any]] = []
    for kind in CLIENTS:
        ms = percentiles_ms(volumes[kind])
        worse = {name: round(ms[name] - quiet[name], 2) for name in ("p50", "p95", "p99")
                 if name in ms}  # fmt: skip
        rows.append(
            {
                "subscribers": kind,
                "volume_ms": ms,
                "worse_ms": worse,
                "within_5_ms": max(worse.values()) < 5.0,
                "answer_ms": percentiles_ms(answers[kind]),
                "counts": dict(counts[kind]),
            }
        )
    question = "what subscribers that misbehave cost a run"
    result = {"question": question, **about, "tr_s": TR_S, "speed": args.speed, "rows": rows}
    write(result, args.json)


if __name__ == "__main__":
    main()
