"""How fast is a volume, or a batch of 64, made into tokens on a GPU, beside torch?

    python benchmarks/resample_gpu.py runtime/reference/bundle/kernels \
        --json benchmarks/results/resample_gpu.json

Needs a GPU, torch and cuda-python; the kernel is taken as a bundle holds it, so that triton serves
torch.compile only. Correctness first: nothing is timed before everyone's tokens equal the
reference. Volumes are Fortran-ordered, as nibabel reads them, and so are torch's: it works on the
transposed view, which is contiguous. Times are GPU times between events with an empty L2 cache,
unless they are said to be wall times; `graph_warm` is one launch of many in one graph.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
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
from resample_rivals import TorchAffine, TorchResize

from scanside.kernels.device_arguments import DeviceArray
from scanside.kernels.launcher import CudaResampler, Launch
from scanside.kernels.resample_reference import resample_reference

TYPES = (("float32", "float32"), ("int16", "float32"), ("int16", "float16"))
ALLOWED = {"ours": 1e-5, "torch": 1e-3}
LAUNCHES = 50
"""In one graph, so that its own start is lost in them."""
MOST_US, LEAST_TIMES_EAGER = 10.0, 5.0
"""Targets for one volume: GPU time of the launch in a graph, and how much faster than eager torch
that is. The first is for an H200."""
LEAST_BANDWIDTH = {("float32", "float32"): 0.70, ("int16", "float16"): 0.45}
"""Targets for a batch of 64: share of the bandwidth that a copy reaches."""


def our_launch(
    problem: Problem, stored: torch.Tensor, dtype: torch.dtype, kernels: Path
) -> tuple[CudaResampler, Launch, torch.Tensor]:
    """The compiled kernel, prepared; its tokens start as NaN."""
    shape = (len(stored), *problem.geometry.shape)
    tokens = torch.full(shape, torch.nan, dtype=dtype, device="cuda")
    gpu = CudaResampler(
        kernels,
        problem.geometry,
        volume_dtype=_name(stored.dtype),
        dtype=_name(dtype),
        mean=problem.mean,
        inv_std=problem.inv_std,
    )
    launch = gpu.prepare(
        DeviceArray.of(stored.permute(0, 3, 2, 1)),
        DeviceArray.of(tokens),
        model_to_source=problem.matrix,
        slope=SLOPE,
        inter=INTER,
    )
    return gpu, launch, tokens


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def truths(problem: Problem, stored: NDArray[Any]) -> dict[int, NDArray[np.float64]]:
    """The reference for the first and the last volume of a batch (B, Z, Y, X)."""
    found: dict[int, NDArray[np.float64]] = {}
    for b in {0, len(stored) - 1}:
        found[b] = np.empty(problem.geometry.shape)
        resample_reference(
            stored[b].T,
            problem.geometry,
            problem.matrix,
            SLOPE,
            INTER,
            problem.mean,
            problem.inv_std,
            0.0,
            found[b],
        )
    return found


def check(name: str, tokens: torch.Tensor, truth: dict[int, NDArray[np.float64]]) -> float:
    """The largest relative difference, if it is small enough to go on; NaN is not."""
    rounding = 2.0**-11 if tokens.dtype == torch.float16 else 0.0
    largest = 0.0
    for b, expected in truth.items():
        found = tokens[b].double().cpu().numpy()
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not difference < ALLOWED["ours" if name == "ours" else "torch"] + rounding:
            raise SystemExit(f"{name} differs from the reference by {difference:.1e}; not timed")
        largest = max(largest, difference)
    return float(f"{largest:.1e}")


def gpu_us(run: Callable[[], object], rounds: int, empty: torch.Tensor | None) -> dict[str, float]:
    """Quantiles of the GPU time of a call in microseconds; `empty` is written to before each."""
    for _ in range(3):
        run()
    begin, end = ([torch.cuda.Event(enable_timing=True) for _ in range(rounds)] for _ in range(2))
    for i in range(rounds):
        if empty is not None:
            empty.zero_()
        begin[i].record()
        run()
        end[i].record()
    torch.cuda.synchronize()
    times = [1000 * b.elapsed_time(e) for b, e in zip(begin, end, strict=True)]
    return {f"p{q}": round(float(np.percentile(times, q)), 2) for q in (20, 50, 80)}


def wall_us(run: Callable[[], object], rounds: int) -> float:
    """Median wall time of a call and of waiting for it, in microseconds."""
    seconds: list[float] = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return round(1e6 * float(np.median(seconds)), 2)


def captured(launch: Launch, times: int) -> torch.cuda.CUDAGraph:
    """A CUDA graph of launches one after the other."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            launch(torch.cuda.current_stream().cuda_stream)
    return graph


def copy_gb_per_s() -> float:
    """Bandwidth of a copy within the device, bytes read and written counted."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return round(2 * source.nbytes / gpu_us(lambda: target.copy_(source), 20, None)["p50"] / 1e3)


def measure(
    problem: Problem, mapping: str, types: tuple[str, str], batch: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Check everyone, then time everyone."""
    volumes = random_volumes(batch, problem.shape, types[0])
    stored, dtype = torch.from_numpy(volumes).cuda(), getattr(torch, types[1])
    truth = truths(problem, volumes)
    gpu, launch, tokens = our_launch(problem, stored, dtype, args.kernels)
    rival = (TorchResize if mapping == "resize" else TorchAffine)(problem, "cuda", dtype)
    torch.compiler.reset()
    compiled = torch.compile(rival.__call__, dynamic=False)

    def ours() -> None:
        launch(torch.cuda.current_stream().cuda_stream)

    ours()
    torch.cuda.synchronize()
    differences: dict[str, float] = {}
    for name, made in (("ours", tokens), ("eager", rival(stored)), ("compiled", compiled(stored))):
        differences[name] = check(name, made, truth)
    one, many = captured(launch, 1), captured(launch, LAUNCHES)
    tokens.fill_(torch.nan)
    one.replay()
    torch.cuda.synchronize()
    differences["graph"] = check("ours", tokens, truth)
    empty = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    runs: dict[str, Callable[[], object]] = {
        "ours": ours,
        "graph": one.replay,
        "eager": lambda: rival(stored),
        "compiled": lambda: compiled(stored),
    }
    times = {name: gpu_us(run, args.rounds, empty) for name, run in runs.items()}
    warm = gpu_us(many.replay, max(args.rounds // LAUNCHES, 5), None)
    times["graph_warm"] = {q: round(t / LAUNCHES, 2) for q, t in warm.items()}
    walls = {name: wall_us(run, args.rounds) for name, run in runs.items()}
    gpu.close()
    # volumes read once, tokens written once, statistics read once for the whole batch
    least = stored.nbytes + tokens.nbytes + problem.mean.nbytes + problem.inv_std.nbytes
    return {
        "target": gpu.target,
        "difference": differences,
        "gpu_us": times,
        "wall_us": walls,
        "least_bytes": least,
        "gb_per_s": round(least / times["graph"]["p50"] / 1e3),
        "times_as_fast_as_eager": round(times["eager"]["p50"] / times["graph"]["p50"], 1),
    }


def measured_rows(args: argparse.Namespace, copy: float) -> list[dict[str, Any]]:
    """A row for each subject, mapping, pair of types, number of cubes and batch."""
    made: list[dict[str, Any]] = []
    cases = itertools.product(
        args.subjects, MAPPINGS, TYPES, (96, CANDIDATES), sorted({1, args.batch})
    )
    for subject, mapping, types, cubes, batch in cases:
        problem = make_problem(SHAPES[subject], mapping, cubes)
        row = measure(problem, mapping, types, batch, args)
        row["of_copy_bandwidth"] = round(row["gb_per_s"] / copy, 3)
        case = {"subject": subject, "mapping": mapping, "stored": types[0], "tokens": types[1]}
        made.append({**case, "cubes": cubes, "batch": batch, **row})
        print(json.dumps(made[-1]), file=sys.stderr, flush=True)
    return made


def verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst row beside each target."""
    found: list[dict[str, Any]] = []

    def judge(what: str, target: float, values: Sequence[float], *, most: bool) -> None:
        if values:
            worst = max(values) if most else min(values)
            met = worst <= target if most else worst >= target
            found.append({"what": what, "target": target, "worst": worst, "met": met})

    one = [row for row in rows if row["batch"] == 1]
    judge("GPU us of one volume", MOST_US, [r["gpu_us"]["graph"]["p50"] for r in one], most=True)
    times = [row["times_as_fast_as_eager"] for row in one]
    judge("times as fast as eager torch", LEAST_TIMES_EAGER, times, most=False)
    for types, share in LEAST_BANDWIDTH.items():
        many = [r for r in rows if r["batch"] > 1 and (r["stored"], r["tokens"]) == types]
        what = f"share of copy bandwidth in a batch, {types[0]} to {types[1]}"
        judge(what, share, [row["of_copy_bandwidth"] for row in many], most=False)
    return found


def facts(kernels: Path) -> dict[str, Any]:
    """Card, driver, versions, commit and command."""

    def output(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    root = str(Path(__file__).resolve().parent)
    major, minor = torch.cuda.get_device_capability()
    contract = json.loads((kernels / "kernels.json").read_text())
    packages = ("scanside", "numpy", "torch", "triton", "cuda-bindings")
    return {
        "question": "from volumes to tokens on a GPU, beside torch",
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": sys.version.split()[0],
        "versions": {package: installed(package) for package in packages},
        "compiled_by": {key: contract[key] for key in ("triton", "ptxas")},
        "commit": output("git", "-C", root, "rev-parse", "--short", "HEAD"),
        "date": date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> int:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", type=Path, help="folder of compiled kernels, in a bundle")
    parser.add_argument("--subjects", nargs="+", choices=SHAPES, default=["subj02"])
    parser.add_argument("--batch", type=int, default=64, help="volumes in a batch (default: 64)")
    parser.add_argument("--rounds", type=int, default=200, help="timed calls (default: 200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result here")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device, and torch finds none")
    copy = copy_gb_per_s()
    rows = measured_rows(args, copy)
    judged = verdicts(rows)
    result = facts(args.kernels) | {"copy_gb_per_s": copy, "verdicts": judged, "rows": rows}
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if args.json:
        args.json.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
