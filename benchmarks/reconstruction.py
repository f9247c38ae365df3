"""How fast is the picture, beside diffusers and torch.compile?

    python benchmarks/reconstruction.py --json benchmarks/results/reconstruction.json
    python benchmarks/reconstruction.py CHECKPOINT BUNDLE --steps 2 --runs 3 --one-at-a-time

The same prompt, CLIP vector, latent, noise, schedule, steps and threads for all. Each contender
lives in its own process, so that its peak memory is its own; they take turns, run by run, or where
memory holds only one of them, contender by contender. Pictures are compared before anything is
timed. A run goes from prompt text, CLIP vector and latent to pixels.

The full size, with random weights in CHECKPOINT and its bundle:
    python -P -c "from pathlib import Path; from scanside.export.random_checkpoint import *; \
        write_random_checkpoint('paper-pictures', Path('CHECKPOINT'))"
    scanside export CHECKPOINT BUNDLE
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from timing import ROOT, machine, percentiles_ms, write

CONTENDERS = ("scanside", "diffusers eager", "diffusers, torch.compile")
PROMPT = "small red circle top left, large blue ring centre, grey background"
SEED = 0
LEAST_PSNR_DB = 40.0
Pixels = NDArray[np.uint8]


def inputs(shape: tuple[int, ...], clip_size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """A latent (1, 4, h, w) and a CLIP vector (1, D), float32."""
    rng = np.random.default_rng(1)
    latent = rng.standard_normal((1, *shape)).astype(np.float32)
    return latent, rng.standard_normal((1, clip_size)).astype(np.float32)


def scanside(checkpoint: Path, bundle: str, steps: int, threads: int) -> Callable[[], Pixels]:
    """The compiled stages, as a decode runs them."""
    from scanside.runtime.bundle import Bundle
    from scanside.runtime.denoising import Condition
    from scanside.runtime.devices import stage_devices
    from scanside.runtime.opened_graphs import open_stage
    from scanside.runtime.pictures import open_pictures
    from scanside.runtime.reconstruction import to_pixels

    opened = Bundle.open(bundle)
    spec = opened.manifest.diffusion
    assert spec is not None
    open_one = functools.partial(open_stage, opened, stage_devices("cpu"), threads)
    pictures = open_pictures(opened, spec, open_one, {})
    latent, clip = inputs(
        opened.manifest.encoder.outputs["latent"].shape[1:],
        opened.manifest.encoder.outputs["clip"].shape[1],
    )

    def run() -> Pixels:
        states, _ = pictures.prompt.encode(PROMPT)
        condition = Condition(clip=clip, latent=latent, states=states)
        clean = pictures.reconstruction.denoise(condition, steps=steps, seed=SEED)
        return to_pixels(pictures.reconstruction.decode(clean))

    return run


def diffusers(
    checkpoint: Path, bundle: str, steps: int, threads: int, compiled: bool = False
) -> Callable[[], Pixels]:
    """The pipeline, with given embedding and start."""
    import torch
    from peer_diffusers import DiffusersPicture

    torch.set_num_threads(threads)
    paint = DiffusersPicture(checkpoint, steps=steps, compiled=compiled)
    latent, clip = inputs(paint.latent_shape, paint.clip_size)
    return lambda: paint(PROMPT, clip, latent, SEED)


def work(args: argparse.Namespace) -> int:
    """A contender's process: a picture for each line on stdin."""
    make = scanside if args.work == CONTENDERS[0] else diffusers
    extra = {"compiled": True} if args.work == CONTENDERS[2] else {}
    run = make(args.checkpoint, args.bundle, args.steps, args.threads, **extra)
    for line in sys.stdin:
        began = time.perf_counter()
        pixels = run()
        took = time.perf_counter() - began
        if line.startswith("save"):
            np.save(line.split(maxsplit=1)[1].strip(), pixels)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": took, "peak_mib": peak / 1024}), flush=True)
    return 0


def start(contender: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    """A contender in a process of its own."""
    where = [str(args.checkpoint), args.bundle, "--steps", args.steps, "--threads", args.threads]
    command = [sys.executable, __file__, *where, "--work", contender]
    # a process that waits for its turn must not spin
    environment = os.environ | {
        "OMP_NUM_THREADS": str(args.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ask(process: subprocess.Popen[str], order: str) -> dict[str, float]:
    """One picture."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(order + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a contender ended without a picture, with exit code {process.wait()}")
    return json.loads(answer)


def psnr_db(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures."""
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


class Runs(NamedTuple):
    """What a contender did."""

    picture: Pixels
    seconds: list[float]
    peak_mib: float


def prepared(name: str, args: argparse.Namespace) -> tuple[subprocess.Popen[str], Pixels]:
    """A contender that has made its first picture, and that picture."""
    worker = start(name, args)
    path = Path(args.scratch) / "picture.npy"
    ask(worker, f"save {path}")
    return worker, np.load(path)


def check(picture: Pixels, wanted: Pixels) -> float:
    """Peak signal-to-noise ratio of a picture; SystemExit if it is another picture."""
    found = psnr_db(wanted, picture)
    if found < LEAST_PSNR_DB:
        raise SystemExit(f"the pictures differ: {found:.1f} dB, nothing is timed")
    return found


def by_turns(args: argparse.Namespace) -> dict[str, Runs]:
    """All contenders in memory, run by run."""
    workers = {name: prepared(name, args) for name in CONTENDERS}
    check(workers[CONTENDERS[0]][1], workers[CONTENDERS[1]][1])
    found = {name: Runs(picture, [], 0.0) for name, (_, picture) in workers.items()}
    for turn in range(args.runs + 1):
        for name, (worker, _) in workers.items():
            answer = ask(worker, "run")
            if turn:  # the first one warms up
                found[name].seconds.append(answer["seconds"])
            found[name] = found[name]._replace(peak_mib=answer["peak_mib"])
    for worker, _ in workers.values():
        worker.communicate()
    return found


def one_at_a_time(args: argparse.Namespace) -> dict[str, Runs]:
    """One contender in memory; diffusers goes first, for all must make its picture."""
    found: dict[str, Runs] = {}
    for name in sorted(CONTENDERS, key=lambda name: name != CONTENDERS[1]):
        worker, picture = prepared(name, args)
        if found:
            check(picture, found[CONTENDERS[1]].picture)
        answers = [ask(worker, "run") for _ in range(args.runs)]
        worker.communicate()
        seconds = [answer["seconds"] for answer in answers]
        found[name] = Runs(picture, seconds, answers[-1]["peak_mib"])
    return found


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Check the pictures, time, put side by side."""
    found = (one_at_a_time if args.one_at_a_time else by_turns)(args)
    eager, ours = found[CONTENDERS[1]], np.array(found[CONTENDERS[0]].seconds)
    rows = {}
    for name in CONTENDERS:
        ratios = np.array(found[name].seconds) / ours
        rows[name] = {
            "picture_ms": percentiles_ms(found[name].seconds),
            "times_ours": round(float(np.median(ratios)), 3),
            "times_ours_quartiles": [round(float(q), 3) for q in np.percentile(ratios, (25, 75))],
            "peak_mib": round(found[name].peak_mib, 1),
            "psnr_to_eager_db": round(min(psnr_db(eager.picture, found[name].picture), 999.0), 1),
        }
    return rows


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reference = ROOT / "export/reference/checkpoint"
    parser.add_argument("checkpoint", type=Path, nargs="?", default=reference)
    parser.add_argument("bundle", nargs="?", default="reference")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one-at-a-time", action="store_true", help="to save memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args)
    import tempfile

    about = machine()
    with tempfile.TemporaryDirectory() as scratch:
        args.scratch = scratch
        rows = compare(args)
    for name, row in rows.items():
        ms = row["picture_ms"]
        print(
            f"{name:28} {ms.get('p50', ms['max']):9.1f} ms  {row['times_ours']:5.2f} x ours  "
            f"{row['peak_mib']:7.0f} MiB  {row['psnr_to_eager_db']} dB",
            file=sys.stderr,
        )
    write(
        {
            "question": "speed and memory of the picture beside diffusers",
            **about,
            "bundle": args.bundle,
            "steps": args.steps,
            "threads": args.threads,
            "contenders": rows,
        },
        args.json,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
