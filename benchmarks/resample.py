"""How fast is one volume made into tokens, beside torch and SciPy?

    python benchmarks/resample.py --json benchmarks/results/resample.json

The native grids of NSD's eight subjects onto the paper's grid, 83 x 104 x 81 in cubes of 14, all
288 of them and 96; the pure resize and a general affine; stored int16 and float32. Correctness
first: nothing is timed before everyone's tokens equal the reference. Times are taken in turn in one
process with the same number of threads (SciPy has one).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from resample_rivals import Problem, Scipy, TorchAffine, TorchResize
from timing import machine, percentiles_ms, write

from scanside.export.reference.world import NATIVE_SHAPES
from scanside.kernels import Geometry, Resampler, resample_patchify, resize_matrix
from scanside.kernels.native import instruction_sets

GRID, CUBE = (83, 104, 81), 14
SLOPE, INTER = 1 / 300, 0.25
SCIPY_EVERY = 10
"""Rounds between two of SciPy's, which take long and vary little."""

Run = Callable[[NDArray[Any]], NDArray[np.float32]]


def turned(shape: Sequence[int]) -> NDArray[np.float64]:
    """The resize, turned by a few degrees about each axis and moved, as heads lie in a scanner."""
    matrix = resize_matrix(shape, GRID)
    for axis, degrees in enumerate((4.0, -3.0, 6.0)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = (n for n in range(3) if n != axis)
        turn = np.eye(4)
        turn[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        matrix = matrix @ turn
    middle = (np.array(GRID) - 1) / 2
    matrix[:3, 3] = (np.array(shape) - 1) / 2 - matrix[:3, :3] @ middle + (1.3, -0.8, 0.6)
    return matrix


def make_problem(shape: tuple[int, int, int], mapping: str, dtype: str, cubes: int) -> Problem:
    """Random values on a subject's grid; the cubes in the middle if not all are wanted."""
    rng = np.random.default_rng(0)
    volume = np.asfortranarray((rng.normal(size=shape) * 900).astype(dtype))
    every = Geometry(grid=GRID, cube=CUBE, active=np.arange(288))
    middle = (np.array(GRID) - 1) / 2
    distance = np.linalg.norm(every.corners + (CUBE - 1) / 2 - middle, axis=1)
    nearest = np.sort(np.argsort(distance, kind="stable")[:cubes])
    geometry = Geometry(grid=GRID, cube=CUBE, active=nearest)
    return Problem(
        volume=volume,
        geometry=geometry,
        matrix=resize_matrix(shape, GRID) if mapping == "resize" else turned(shape),
        slope=SLOPE,
        inter=INTER,
        mean=rng.normal(size=geometry.shape).astype(np.float32),
        inv_std=rng.uniform(0.2, 2, geometry.shape).astype(np.float32),
    )


def contestants(problem: Problem, mapping: str, threads: int) -> dict[str, Run]:
    """Ours and the rivals, prepared."""
    ours = Resampler(
        problem.geometry,
        mean=problem.mean,
        inv_std=problem.inv_std,
        impl="cpu",
        threads=threads,
    )
    out = np.empty(problem.geometry.shape, np.float32)
    matrix = problem.matrix

    def native(volume: NDArray[Any]) -> NDArray[np.float32]:
        return ours(volume, model_to_source=matrix, slope=SLOPE, inter=INTER, out=out)

    torch_way = TorchResize if mapping == "resize" else TorchAffine
    return {"native": native, "torch": torch_way(problem), "scipy": Scipy(problem)}


def check(problem: Problem, runs: dict[str, Run]) -> dict[str, float]:
    """Largest difference of each from the reference, relative to its largest value."""
    truth = resample_patchify(
        problem.volume,
        problem.geometry,
        model_to_source=problem.matrix,
        slope=SLOPE,
        inter=INTER,
        mean=problem.mean,
        inv_std=problem.inv_std,
        impl="reference",
    )
    found: dict[str, float] = {}
    for name, run in runs.items():
        difference = np.abs(run(problem.volume) - truth).max() / np.abs(truth).max()
        # torch computes its points in float32, SciPy its values
        if not difference < (1e-5 if name == "native" else 1e-3):
            raise SystemExit(f"{name} differs from the reference by {difference:.1e}; not timed")
        found[name] = float(f"{difference:.1e}")
    return found


def measure(problem: Problem, runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turn, on a volume that is a new array in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(-2, rounds):
        volume = problem.volume.copy(order="F")
        for name, run in runs.items():
            if name == "scipy" and i % SCIPY_EVERY:
                continue
            start = time.perf_counter()
            run(volume)
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_cpu(subjects: Sequence[str], threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each subject, mapping, stored type and number of cubes."""
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    cases = itertools.product(("resize", "affine"), ("int16", "float32"), (96, 288), subjects)
    for mapping, dtype, cubes, subject in cases:
        problem = make_problem(NATIVE_SHAPES[subject], mapping, dtype, cubes)
        runs = contestants(problem, mapping, threads)
        difference = check(problem, runs)
        seconds = measure(problem, runs, rounds)
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        rows.append(
            {
                "mapping": mapping,
                "dtype": dtype,
                "cubes": cubes,
                "subject": subject,
                "threads": threads,
                "difference": difference,
                "ms": {name: percentiles_ms(values) for name, values in seconds.items()},
                "times_torch": round(median["torch"] / median["native"], 2),
                "times_scipy": round(median["scipy"] / median["native"], 2),
            }
        )
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the subjects, and the least advantage over each rival."""
    keys = ("mapping", "dtype", "cubes", "threads")
    lines: list[dict[str, Any]] = []
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        group = [row for row in rows if tuple(row[k] for k in keys) == key]
        line: dict[str, Any] = dict(zip(keys, key, strict=True))
        for name in ("native", "torch", "scipy"):
            line[f"{name}_ms"] = round(float(np.median([r["ms"][name]["p50"] for r in group])), 3)
        for rival in ("torch", "scipy"):
            line[f"least_times_{rival}"] = min(r[f"times_{rival}"] for r in group)
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
    parser.add_argument("--subjects", nargs="+", default=list(NATIVE_SHAPES))
    parser.add_argument("--rounds", type=int, default=100, help="timed rounds of each row")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    rows = [
        row for threads in args.threads for row in measure_cpu(args.subjects, threads, args.rounds)
    ]
    summary = summarise(rows)
    show(summary)
    result = {
        "question": "from a volume to tokens, beside torch and SciPy",
        **about,
        "instruction_set": instruction_sets()[-1],
        "torch": torch.__version__,
        "summary": summary,
        "rows": rows,
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
