"""How fast is one volume made into tokens, beside torch and SciPy?

    python benchmarks/resample.py --json benchmarks/results/resample.json

The native grids of NSD's eight subjects onto the paper's grid, 83 x 104 x 81 in cubes of 14, all
288 of them and 96; the pure resize and a general affine; stored int16 and float32. Correctness
first: nothing is timed before everyone's tokens equal the reference. Times are taken in one process
with the same number of threads (SciPy has one), in turn and in an order that changes from round to
round; everyone is handed a new volume and makes a new array of tokens.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from resample_problem import (
    CANDIDATES,
    INTER,
    MAPPINGS,
    SHAPES,
    SLOPE,
    Problem,
    make_problem,
    random_volumes,
)
from resample_rivals import Scipy, TorchAffine, TorchResize
from timing import machine, percentiles_ms, write

from scanside.kernels import Resampler, resample_patchify
from scanside.kernels.native import instruction_sets

TYPES = ("int16", "float32")
SCIPY_ROUNDS = 6
"""Of all rounds those in which SciPy takes part, since it takes long and varies little."""
TARGETS = {"resize": 2.0, "affine": 4.0}
"""How many times as fast as torch the native code is to be, for every subject."""
TARGET_SCIPY = 10.0

Run = Callable[[NDArray[Any]], NDArray[np.float32]]


def contestants(problem: Problem, mapping: str, threads: int) -> dict[str, Run]:
    """Ours and the rivals, prepared; each takes one Fortran-ordered volume (X, Y, Z)."""
    torch.set_num_threads(threads)
    ours = Resampler(
        problem.geometry,
        mean=problem.mean,
        inv_std=problem.inv_std,
        impl="cpu",
        threads=threads,
    )
    torch_way = (TorchResize if mapping == "resize" else TorchAffine)(problem)
    scipy_way = Scipy(problem)

    tokens = np.empty(problem.geometry.shape, np.float32)

    def native(volume: NDArray[Any]) -> NDArray[np.float32]:
        return ours(volume, model_to_source=problem.matrix, slope=SLOPE, inter=INTER, out=tokens)

    def by_torch(volume: NDArray[Any]) -> NDArray[np.float32]:
        return torch_way(torch.from_numpy(volume.T)[None])[0].numpy()

    return {"native": native, "torch": by_torch, "scipy": lambda volume: scipy_way(volume.T)}


def check(
    volume: NDArray[Any], truth: NDArray[np.float32], runs: dict[str, Run]
) -> dict[str, float]:
    """Largest difference of each from the reference, relative to its largest value."""
    found: dict[str, float] = {}
    for name, run in runs.items():
        difference = np.abs(run(volume) - truth).max() / np.abs(truth).max()
        # torch computes its points in float32, SciPy its values
        if not difference < (1e-5 if name == "native" else 1e-3):
            raise SystemExit(f"{name} differs from the reference by {difference:.1e}; not timed")
        found[name] = float(f"{difference:.1e}")
    return found


def measure(volume: NDArray[Any], runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turn, on a volume that is a new array in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    every = max(rounds // SCIPY_ROUNDS, 1)
    for i in range(-2, rounds):
        new = volume.copy(order="F")
        first = i % len(names)
        for name in names[first:] + names[:first]:
            if name == "scipy" and i % every:
                continue
            start = time.perf_counter()
            runs[name](new)
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def rows_of_case(
    mapping: str, dtype: str, cubes: int, subject: str, threads: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """A row for each number of threads, for which the truth is computed once."""
    problem = make_problem(SHAPES[subject], mapping, cubes)
    volume = random_volumes(1, problem.shape, dtype)[0].T
    truth = resample_patchify(
        volume,
        problem.geometry,
        model_to_source=problem.matrix,
        slope=SLOPE,
        inter=INTER,
        mean=problem.mean,
        inv_std=problem.inv_std,
        impl="reference",
    )
    rows: list[dict[str, Any]] = []
    for count in threads:
        runs = contestants(problem, mapping, count)
        difference = check(volume, truth, runs)
        seconds = measure(volume, runs, rounds)
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        rows.append(
            {
                "mapping": mapping,
                "dtype": dtype,
                "cubes": cubes,
                "threads": count,
                "subject": subject,
                "difference": difference,
                "ms": {name: percentiles_ms(values) for name, values in seconds.items()},
                "times_torch": round(median["torch"] / median["native"], 2),
                "times_scipy": round(median["scipy"] / median["native"], 2),
            }
        )
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the subjects, the least advantage over each rival, and whether it suffices."""
    keys = ("mapping", "dtype", "cubes", "threads")
    lines: list[dict[str, Any]] = []
    for key in sorted({tuple(row[k] for k in keys) for row in rows}, reverse=True):
        group = [row for row in rows if tuple(row[k] for k in keys) == key]
        line: dict[str, Any] = dict(zip(keys, key, strict=True))
        for name in ("native", "torch", "scipy"):
            line[f"{name}_ms"] = round(float(np.median([r["ms"][name]["p50"] for r in group])), 3)
        for rival in ("torch", "scipy"):
            line[f"least_times_{rival}"] = min(r[f"times_{rival}"] for r in group)
        enough = line["least_times_torch"] >= TARGETS[line["mapping"]]
        line["met"] = bool(enough and line["least_times_scipy"] >= TARGET_SCIPY)
        lines.append(line)
    return lines


def show(lines: Sequence[dict[str, Any]]) -> None:
    """A table for people."""
    header = list(lines[0])
    print("  ".join(f"{name:>17}" for name in header))
    for line in lines:
        print("  ".join(f"{line[name]!s:>17}" for name in header))


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=60, help="timed rounds of each row")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    about["versions"] |= {"torch": torch.__version__, "scipy": scipy.__version__}
    cases = itertools.product(MAPPINGS, TYPES, (96, CANDIDATES), args.subjects)
    with torch.inference_mode():
        rows = [
            row
            for mapping, dtype, cubes, subject in cases
            for row in rows_of_case(mapping, dtype, cubes, subject, args.threads, args.rounds)
        ]
    summary = summarise(rows)
    show(summary)
    result = {
        "question": "from a volume to tokens, beside torch and SciPy",
        **about,
        "instruction_set": instruction_sets()[-1],
        "targets": {"times_torch": TARGETS, "times_scipy": TARGET_SCIPY},
        "summary": summary,
        "rows": rows,
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
