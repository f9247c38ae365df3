"""Does int8 pay on this CPU, and what does it cost in accuracy?

    python benchmarks/eight_bits.py --json benchmarks/results/eight_bits.json
    python benchmarks/eight_bits.py BUNDLE:encoder --checkpoint CHECKPOINT   # beside PyTorch, too

Takes the float32 graphs of bundles as they are, puts their products with weights in 8 bits as
`scanside export --precision int8` does, and lets both run in turn on the same inputs: the golden
volume's tokens, and a step of the U-Net on its noise. The float32 graph is entered twice, so that
it is known which ratio means nothing. On a busy machine `--clock cpu --threads 1` counts the
processor's time instead of the wall's. With the checkpoint that a bundle was made from, PyTorch's
eager encoder takes its turn, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from timing import machine, percentiles_ms, write

from scanside.export.eight_bits import to_eight_bits
from scanside.runtime.bench import Neighbours, compared, noise_of
from scanside.runtime.bundle import Bundle
from scanside.runtime.engines.onnx_cpu import OnnxEngine

STAGES = ("encoder", "unet")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Json = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
Work = Callable[[], Mapping[str, NDArray[Any]]]
RATIOS = {
    "times_as_fast": ("fp32", "int8"),
    "fp32 beside PyTorch": ("PyTorch", "fp32"),
    "int8 beside PyTorch": ("PyTorch", "int8"),
}
PAUSE_S = 0.02
"""For a thread pool may spin a little after its work."""


def stage_file(bundle: Bundle, stage: str) -> Path:
    """The graph of a stage."""
    if stage == "encoder":
        return bundle.path(bundle.manifest.encoder.file)
    spec = bundle.manifest.diffusion
    assert spec is not None
    return bundle.path(spec.unet)


def inputs(bundle: Bundle, stage: str, engine: OnnxEngine) -> Arrays:
    """What the stage is given for the golden volume."""
    golden = bundle.arrays("golden/outputs.npz")
    if stage == "encoder":
        return {"tokens": golden["tokens"]}
    spec = bundle.manifest.diffusion
    assert spec is not None
    rng = np.random.default_rng(0)
    shapes = {name: tensor.shape for name, tensor in engine.inputs.items()}
    normal = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    times = bundle.arrays(spec.arrays)["time_embeddings"]
    given = {"time": times[len(times) // 2][None], "states": golden["states"]}
    return {
        name: np.broadcast_to(given[name], shape) if name in given else normal[name]
        for name, shape in shapes.items()
    }


def in_eight_bits(graph: Path, folder: Path) -> Path:
    """A copy of a graph, and of the weights beside it, with products in 8 bits."""
    path = folder / graph.name
    model = onnx.load(graph)  # with the weights that lie beside it
    onnx.save(model, path, save_as_external_data=True, location=f"{graph.name}.data")
    del model
    to_eight_bits(path)
    return path


def size_mib(graph: Path) -> float:
    """Of a graph and of the weights beside it, which may be shared with others."""
    model = onnx.load(graph, load_external_data=False)
    beside = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [graph, *(graph.parent / name for name in beside)]
    return round(sum(file.stat().st_size for file in files) / 2**20, 2)


def eager(checkpoint: Path, tokens: NDArray[Any], threads: int) -> Work:
    """PyTorch's encoder of the same checkpoint, as its user would call it."""
    import torch
    from peer_torch import TorchEncoder

    torch.set_num_threads(threads)
    return partial(TorchEncoder(checkpoint), np.ascontiguousarray(tokens, np.float32))


def difference(truth: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> float:
    """Largest, over an output's largest value."""
    return max(float(np.abs(found[k] - v).max() / np.abs(v).max()) for k, v in truth.items())


def measured(what: str, args: argparse.Namespace) -> Json:
    """One row: how much faster, how much smaller, how far off."""
    where, _, stage = what.rpartition(":")
    bundle, clock = Bundle.open(where), CLOCKS[args.clock]
    graph = stage_file(bundle, stage)
    with tempfile.TemporaryDirectory() as scratch:
        small = in_eight_bits(graph, Path(scratch))
        engines = {
            name: OnnxEngine(stage, path, args.threads)
            for name, path in (("fp32", graph), ("int8", small))
        }
        feeds = inputs(bundle, stage, engines["fp32"])
        work: dict[str, Work] = {name: partial(one.run, feeds) for name, one in engines.items()}
        work["again"] = work["fp32"]
        if args.checkpoint and stage == "encoder":
            work["PyTorch"] = eager(args.checkpoint, feeds["tokens"], args.threads)
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for turn in range(-3, args.runs):
            for name, once in work.items():
                began = clock()
                once()
                if turn >= 0:
                    seconds[name].append(clock() - began)
                time.sleep(PAUSE_S)
        plain, rounded = work["fp32"](), work["int8"]()
        if "PyTorch" in work:
            off = difference(work["PyTorch"](), plain)
            if off > 1e-4:
                raise SystemExit(f"{args.checkpoint} is not what {where} was made from: {off:.1e}")
        mib = {"fp32": size_mib(graph), "int8": size_mib(small)}
    noise = noise_of(seconds["fp32"], seconds["again"])
    ratios = {
        name: found.as_dict()
        for name, (slow, fast) in RATIOS.items()
        if slow in seconds and (found := compared(seconds[slow], seconds[fast], noise))
    }
    return {
        "bundle": Path(where).name,
        "stage": stage,
        **{f"{name} ms": percentiles_ms(seconds[name]) for name in seconds if name != "again"},
        **ratios,
        "largest_difference": round(difference(plain, rounded), 5),
        "fp32 MiB": mib["fp32"],
        "int8 MiB": mib["int8"],
    }


def main() -> int:
    """Quantise, measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "what", nargs="*", default=[f"reference:{stage}" for stage in STAGES], help="BUNDLE:STAGE"
    )
    parser.add_argument("--checkpoint", type=Path, help="that the bundles were made from")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for what in args.what:
        if what.rpartition(":")[2] not in STAGES:
            parser.error(
                f"{what!r} must end in one of {', '.join(f':{stage}' for stage in STAGES)}"
            )
    about, rows = machine(("onnx",)), list[Json]()
    with Neighbours() as neighbours:
        for what in args.what:
            rows.append(measured(what, args))
            print(rows[-1], file=sys.stderr)
    result = {
        "question": "products in 8 bits on a CPU: speed, size, difference from float32",
        **about,
        **neighbours.as_dict(),
        "threads": args.threads,
        "clock": args.clock,
        "rows": rows,
    }
    write(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
