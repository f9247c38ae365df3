"""How fast is a volume, or a batch of 64, made into tokens on a GPU, beside torch?

    python benchmarks/resample_gpu.py BUNDLE/kernels --json benchmarks/results/resample_gpu.json

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from scanside.kernels import Geometry, resize_matrix
from scanside.kernels.device_arguments import DeviceArray
from scanside.kernels.launcher import CudaResampler, Launch
from scanside.kernels.resample_reference import resample_reference

GRID, CUBE = (83, 104, 81), 14
SHAPES = {
    "S1": (83, 104, 81), "S2": (84, 106, 82), "S3": (82, 106, 81), "S4": (80, 99, 85),
    "S5": (78, 97, 79), "S6": (83, 113, 85), "S7": (81, 95, 78), "S8": (78, 103, 80),
}  # fmt: skip
"""NSD's native grids."""
SLOPE, INTER = 1 / 300, 0.25
TYPES = (("float32", "float32"), ("int16", "float32"), ("int16", "float16"))
ALLOWED = {"ours": 1e-5, "torch": 1e-3}
LAUNCHES = 50
"""In one graph, so that its own start is lost in them."""

Run = Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is to be computed, with everything but the matrix on the device."""

    volumes: torch.Tensor
    """(B, X, Y, Z), each in Fortran order."""
    geometry: Geometry
    matrix: NDArray[np.float64]
    mean: NDArray[np.float32]
    inv_std: NDArray[np.float32]
    dtype: str
    """Of the tokens."""

    @property
    def least_bytes(self) -> int:
        """Every volume read once, every token written once, statistics read once for the batch."""
        tokens = self.mean.size * len(self.volumes) * np.dtype(self.dtype).itemsize
        return self.volumes.nbytes + tokens + self.mean.nbytes + self.inv_std.nbytes


def turned(shape: Sequence[int]) -> NDArray[np.float64]:
    """The resize, turned by a few degrees about each axis, about the middle."""
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


def make_problem(
    shape: tuple[int, int, int],
    mapping: str,
    types: tuple[str, str],
    cubes: int,
    batch: int,
    device: str,
) -> Problem:
    """Random values; cubes are spread evenly over the grid if not all 288 are wanted."""
    rng = np.random.default_rng(0)
    stored, dtype = types
    reversed_volumes = (rng.normal(size=(batch, *shape[::-1])) * 900).astype(stored)
    geometry = Geometry(grid=GRID, cube=CUBE, active=np.arange(288)[:: 288 // cubes])
    return Problem(
        volumes=torch.from_numpy(reversed_volumes).to(device).permute(0, 3, 2, 1),
        geometry=geometry,
        matrix=resize_matrix(shape, GRID) if mapping == "resize" else turned(shape),
        mean=rng.normal(size=geometry.shape).astype(np.float32),
        inv_std=rng.uniform(0.2, 2, geometry.shape).astype(np.float32),
        dtype=dtype,
    )


def torch_resize(problem: Problem) -> Run:
    """`interpolate`, pad, cut into cubes and gather in one copy, normalise."""
    geometry, r, device = problem.geometry, problem.geometry.cube, problem.volumes.device
    x, y, z = geometry.cube_grid
    pad = [p for n, size in zip((x, y, z), GRID, strict=True) for p in (0, n * r - size)]
    places = np.unravel_index(geometry.active, geometry.cube_grid)
    active = tuple(torch.from_numpy(a).to(device) for a in places)
    mean, inv_std, dtype = _statistics(problem)

    def run() -> torch.Tensor:
        real = problem.volumes.permute(0, 3, 2, 1).float() * SLOPE + INTER
        grid = F.interpolate(real[:, None], GRID[::-1], mode="trilinear")[:, 0]
        padded = F.pad(grid, pad)
        cubes = padded.reshape(-1, z, r, y, r, x, r).permute(0, 5, 3, 1, 6, 4, 2)
        tokens = cubes[:, active[0], active[1], active[2]].reshape(-1, *mean.shape)
        return ((tokens - mean) * inv_std).to(dtype)

    return run


def torch_affine(problem: Problem) -> Run:
    """`grid_sample` at the points of the active cubes only, which also cuts and gathers."""
    geometry, device = problem.geometry, problem.volumes.device
    points = geometry.voxels @ problem.matrix[:3, :3].T + problem.matrix[:3, 3]
    shape = np.array(problem.volumes.shape[1:])
    far = torch.from_numpy(((points < -0.5) | (points > shape - 0.5)).any(-1)).to(device)
    normal = torch.from_numpy(((2 * points + 1) / shape - 1).astype(np.float32)).to(device)
    grid = normal[None, None].expand(len(problem.volumes), -1, -1, -1, -1)
    mean, inv_std, dtype = _statistics(problem)

    def run() -> torch.Tensor:
        real = problem.volumes.permute(0, 3, 2, 1).float() * SLOPE + INTER
        tokens = F.grid_sample(real[:, None], grid, padding_mode="border", align_corners=False)
        return ((tokens[:, 0, 0].masked_fill(far, 0.0) - mean) * inv_std).to(dtype)

    return run


def _statistics(problem: Problem) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    masked = (problem.inv_std * problem.geometry.in_grid).astype(np.float32)
    mean, inv_std = (torch.from_numpy(a).to(problem.volumes.device) for a in (problem.mean, masked))
    return mean, inv_std, getattr(torch, problem.dtype)


def our_launch(problem: Problem, kernels: Path) -> tuple[CudaResampler, Launch, torch.Tensor]:
    """The compiled kernel, prepared; its tokens start as NaN."""
    shape = (len(problem.volumes), *problem.geometry.shape)
    tokens = torch.full(shape, torch.nan, dtype=getattr(torch, problem.dtype), device="cuda")
    gpu = CudaResampler(
        kernels,
        problem.geometry,
        volume_dtype=str(problem.volumes.dtype).removeprefix("torch."),
        dtype=problem.dtype,
        mean=problem.mean,
        inv_std=problem.inv_std,
    )
    launch = gpu.prepare(
        DeviceArray.of(problem.volumes),
        DeviceArray.of(tokens),
        model_to_source=problem.matrix,
        slope=SLOPE,
        inter=INTER,
    )
    return gpu, launch, tokens


def difference(problem: Problem, tokens: torch.Tensor) -> float:
    """Largest difference of the first and last volume from the reference, relative."""
    largest = 0.0
    for b in (0, len(problem.volumes) - 1):
        truth = np.empty(problem.geometry.shape)
        resample_reference(
            problem.volumes[b].cpu().numpy(),
            problem.geometry,
            problem.matrix,
            SLOPE,
            INTER,
            problem.mean,
            problem.inv_std,
            0.0,
            truth,
        )
        found = tokens[b].double().cpu().numpy()
        largest = max(largest, float(np.abs(found - truth).max() / np.abs(truth).max()))
    return largest


def check(problem: Problem, name: str, tokens: torch.Tensor) -> float:
    """The difference, if it is small enough to go on; NaN is not."""
    found = difference(problem, tokens)
    rounding = 2.0**-11 if problem.dtype == "float16" else 0.0
    if not found < ALLOWED["ours" if name == "ours" else "torch"] + rounding:
        raise SystemExit(f"{name} differs from the reference by {found:.1e}; not timed")
    return float(f"{found:.1e}")


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


def measure(problem: Problem, mapping: str, kernels: Path, rounds: int) -> dict[str, Any]:
    """Check everyone, then time everyone."""
    gpu, launch, tokens = our_launch(problem, kernels)
    eager = (torch_resize if mapping == "resize" else torch_affine)(problem)
    compiled = torch.compile(eager, dynamic=False)

    def ours() -> None:
        launch(torch.cuda.current_stream().cuda_stream)

    ours()
    torch.cuda.synchronize()
    row: dict[str, Any] = {"target": gpu.target, "difference": {}}
    for name, made in (("ours", tokens), ("eager", eager()), ("compiled", compiled())):
        row["difference"][name] = check(problem, name, made)
    one, many = captured(launch, 1), captured(launch, LAUNCHES)
    tokens.fill_(torch.nan)
    one.replay()
    torch.cuda.synchronize()
    row["difference"]["graph"] = check(problem, "ours", tokens)
    empty = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    row["gpu_us"] = {
        "ours": gpu_us(ours, rounds, empty),
        "graph": gpu_us(one.replay, rounds, empty),
        "eager": gpu_us(eager, rounds, empty),
        "compiled": gpu_us(compiled, rounds, empty),
    }
    warm = gpu_us(many.replay, max(rounds // LAUNCHES, 5), None)
    row["gpu_us"]["graph_warm"] = {q: round(t / LAUNCHES, 2) for q, t in warm.items()}
    row["wall_us"] = {
        name: wall_us(run, rounds)
        for name, run in (
            ("ours", ours),
            ("graph", one.replay),
            ("eager", eager),
            ("compiled", compiled),
        )
    }
    gpu.close()
    return row


def rows(args: argparse.Namespace, copy: float) -> list[dict[str, Any]]:
    """A row for each subject, mapping, pair of types, number of cubes and batch."""
    made: list[dict[str, Any]] = []
    cases = itertools.product(
        args.subjects, ("resize", "affine"), TYPES, (96, 288), (1, args.batch)
    )
    for subject, mapping, types, cubes, batch in cases:
        problem = make_problem(SHAPES[subject], mapping, types, cubes, batch, "cuda")
        torch.compiler.reset()
        row = measure(problem, mapping, args.kernels, args.rounds)
        ours, eager = row["gpu_us"]["graph"]["p50"], row["gpu_us"]["eager"]["p50"]
        gb_per_s = problem.least_bytes / ours / 1e3
        row |= {
            "gb_per_s": round(gb_per_s),
            "of_copy_bandwidth": round(gb_per_s / copy, 3),
            "times_as_fast_as_eager": round(eager / ours, 1),
        }
        case = {"subject": subject, "mapping": mapping, "stored": types[0], "tokens": types[1]}
        made.append({**case, "cubes": cubes, "batch": batch, **row})
        print(json.dumps(made[-1]), file=sys.stderr, flush=True)
    return made


def device_facts() -> dict[str, Any]:
    """Card, driver and versions."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
    major, minor = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "driver": subprocess.run(query, capture_output=True, text=True).stdout.strip(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> int:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", type=Path, help="folder of compiled kernels, in a bundle")
    parser.add_argument("--subjects", nargs="+", choices=SHAPES, default=["S1", "S2"])
    parser.add_argument("--batch", type=int, default=64, help="volumes in a batch (default: 64)")
    parser.add_argument("--rounds", type=int, default=200, help="timed calls (default: 200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result here")
    args = parser.parse_args()
    copy = copy_gb_per_s()
    facts = device_facts() | json.loads((args.kernels / "kernels.json").read_text())
    kept = ("triton", "ptxas", "gpu", "capability", "driver", "python", "torch", "command")
    result = {key: facts[key] for key in kept} | {"copy_gb_per_s": copy, "rows": rows(args, copy)}
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if args.json:
        args.json.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
