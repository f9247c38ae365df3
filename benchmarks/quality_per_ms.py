"""What does each millisecond buy? Score, latency, memory and size of every way to compile the
reference checkpoint: precisions, quantizations, denoising steps.

    python benchmarks/quality_per_ms.py --work DIR --scores-only       # any time, half an hour
    python benchmarks/quality_per_ms.py --work DIR --times-only \\
        --json benchmarks/results/quality_per_ms.json                  # idle cores, 6 minutes

Without either flag both. All options decode the same held-out single trials of the reference world
with the same seeds, so that scores compare in pairs; the score is the one that `scanside export
--min-score` holds a bundle to. Options take turns while they are timed, and one bundle takes part
twice: what it differs from itself is the noise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from timing import ROOT, machine, percentiles_ms, write

from scanside.export.candidates import write_candidates
from scanside.export.choice import Bounds, Measured, Option, choose, front
from scanside.export.held_out import mean_scores, read_trials, scored
from scanside.export.measuring import ROUNDS, latencies, peak_mib, size_mib
from scanside.export.reference.scored_trials import TRIALS, write_scored_trials
from scanside.export.reference.texts import named_objects
from scanside.runtime import Decoder
from scanside.runtime.bench import Neighbours, noise_of
from scanside.runtime.errors import InputError

PRECISIONS = ("fp32", "fp16", "int8")
QUANTIZATIONS = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
STEPS = (1, 2, 4, 8, 20)
ASKED = (
    {"target_latency_ms": 60.0},
    {"target_latency_ms": 80.0},
    {"target_latency_ms": 80.0, "min_score": 0.9},
    {"min_score": 0.97},
    {"min_score": 0.99},
    {"target_latency_ms": 20.0},
)
"""Bounds whose choice is told."""
AGAIN = "again"
Json = dict[str, Any]


def bundles(work: Path, checkpoint: Path) -> tuple[dict[tuple[str, str], Path], dict[str, str]]:
    """Every precision with every quantization, compiled once and kept below `work`."""
    kept = work / "bundles.json"
    if not kept.is_file():
        folder = work / "bundles"
        folder.mkdir(parents=True)
        found = write_candidates(checkpoint, folder, PRECISIONS, QUANTIZATIONS, "reference")
        named = {"|".join(kind): path.name for kind, path in found.bundles.items()}
        kept.write_text(json.dumps({"bundles": named, "refused": found.refused}))
    known = json.loads(kept.read_text())
    paths = {
        (key.split("|")[0], key.split("|")[1]): work / "bundles" / name
        for key, name in known["bundles"].items()
    }
    return paths, known["refused"]


def score_all(work: Path, paths: Mapping[tuple[str, str], Path], threads: int) -> None:
    """Scores, memory and size of each bundle; what was scored by an earlier call is kept."""
    trials = read_trials(work / "trials")
    true = [named_objects(trial.caption or "") for trial in trials]
    for kind, bundle in paths.items():
        kept = work / f"scores-{'-'.join(kind)}.json"
        if kept.is_file():
            continue
        with Decoder.open(bundle, threads=threads) as decoder:
            found, captions = scored(decoder, trials, STEPS)
        named = [named_objects(said) == wanted for said, wanted in zip(captions, true, strict=True)]
        row: Json = {
            "steps": {
                steps: {name: values.tolist() for name, values in scores.items()}
                for steps, scores in found.items()
            },
            "names_every_object": float(np.mean(named)),
            "memory_mib": peak_mib(bundle, trials[0].volume, threads),
            "size_mib": size_mib(bundle),
        }
        kept.write_text(json.dumps(row))
        print(f"{', '.join(kind)}: {len(trials)} trials scored", file=sys.stderr, flush=True)


def rows_of(
    work: Path, paths: Mapping[tuple[str, str], Path], seconds: Mapping[Option, list[float]]
) -> tuple[list[Measured], list[float]]:
    """Every option, and the share of captions that name every colour and shape."""
    rows, named = list[Measured](), list[float]()
    for kind in paths:
        found = json.loads((work / f"scores-{'-'.join(kind)}.json").read_text())
        for steps in STEPS:
            scores = {name: np.array(v) for name, v in found["steps"][str(steps)].items()}
            option = Option(precision=kind[0], quantize=kind[1], steps=steps)
            rows.append(
                Measured(
                    option=option,
                    trial_scores=mean_scores(scores),
                    scores={name: float(values.mean()) for name, values in scores.items()},
                    latency_ms=percentiles_ms(seconds[option]),
                    memory_mib=found["memory_mib"],
                    size_mib=found["size_mib"],
                )
            )
            named.append(found["names_every_object"])
    return rows, named


def timed(
    work: Path, paths: Mapping[tuple[str, str], Path], rounds: int, threads: int
) -> tuple[dict[Option, list[float]], Json]:
    """Seconds of each option by round, what the first bundle differs from itself, and who else
    computed.
    """
    volumes = [trial.volume for trial in read_trials(work / "trials")]
    first = next(iter(paths))
    twice = {**paths, (first[0], AGAIN): paths[first]}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with Neighbours() as neighbours:
        found = latencies(twice, volumes, STEPS, rounds=rounds, threads=threads, say=say)
    noise: Json = {}
    for steps in STEPS:
        once, again = (
            found[Option(precision=first[0], quantize=quantize, steps=steps)]
            for quantize in (first[1], AGAIN)
        )
        factor = noise_of(once, again)
        noise[str(steps)] = None if factor is None else round(factor.factor, 4)
    return found, {"noise": noise, **neighbours.as_dict()}


def choices(rows: list[Measured]) -> list[Json]:
    """What `scanside export` would take for each of `ASKED`."""
    out: list[Json] = []
    for asked in ASKED:
        try:
            row = choose(rows, Bounds(**asked))
            told = {
                "chosen": str(row.option),
                "score": row.score,
                "p95 ms": row.latency_ms["p95"],
            }
        except InputError as exc:
            told = {"chosen": f"nothing: {exc}"}
        out.append({"target latency ms": asked.get("target_latency_ms"),
                    "least score": asked.get("min_score"), **told})  # fmt: skip
    return out


def main() -> int:
    """Compile, score, time, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "out/quality", help="kept between runs")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "export/reference/checkpoint")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timed decodes of each option")
    parser.add_argument("--threads", type=int, default=2)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--scores-only", action="store_true")
    only.add_argument("--times-only", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.times_only and not (args.work / "bundles.json").is_file():
        parser.error(f"--times-only needs {args.work} as --scores-only leaves it")
    if args.rounds < ROUNDS:
        parser.error(f"--rounds must be at least {ROUNDS}, for a 95th percentile needs so many")
    about = machine()
    about["command"] = about["command"].replace(str(args.work), "DIR")
    if not (args.work / "trials").is_dir():
        write_scored_trials(args.work / "trials", args.trials)
    paths, refused = bundles(args.work, args.checkpoint)
    if not args.times_only:
        score_all(args.work, paths, args.threads)
    if args.scores_only:
        return 0
    seconds, load = timed(args.work, paths, args.rounds, args.threads)
    rows, named = rows_of(args.work, paths, seconds)
    best = front(rows)
    result = {
        "question": "what each millisecond buys: every precision, quantization and number of steps",
        **about,
        "threads": args.threads,
        "trials": len(read_trials(args.work / "trials")),
        **load,
        "refused": refused,
        "choices": choices(rows),
        "rows": [
            row.as_dict() | {"names_every_object": share, "front": row in best}
            for row, share in zip(rows, named, strict=True)
        ],
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
