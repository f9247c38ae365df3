"""Does int8 pay on this CPU, and what does it cost in accuracy?

    python benchmarks/eight_bits.py --json benchmarks/results/eight_bits.json
    python benchmarks/eight_bits.py reference:encoder reference:unet BUNDLE:encoder

Takes the float32 graphs of bundles as they are, puts their products with weights in 8 bits as
`scanside export --precision int8` does, and lets both run in turn on the same inputs: the golden
volume's tokens, and a step of the U-Net on its noise. The float32 graph is entered twice, so that
it is known which ratio means nothing. On a busy machine `--clock cpu --threads 1` counts the
processor's time instead of the wall's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
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
        engines["again"] = engines["fp32"]
        feeds = inputs(bundle, stage, engines["fp32"])
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(-3, args.runs):
            for name, engine in engines.items():
                began = clock()
                engine.run(feeds)
                if turn >= 0:
                    seconds[name].append(clock() - began)
        plain, rounded = (engines[name].run(feeds) for name in ("fp32", "int8"))
        mib = {"fp32": size_mib(graph), "int8": size_mib(small)}
    ratio = compared(seconds["fp32"], seconds["int8"], noise_of(seconds["fp32"], seconds["again"]))
    off = max(float(np.abs(rounded[k] - v).max() / np.abs(v).max()) for k, v in plain.items())
    return {
        "bundle": Path(where).name,
        "stage": stage,
        "fp32 ms": percentiles_ms(seconds["fp32"]),
        "int8 ms": percentiles_ms(seconds["int8"]),
        "times_as_fast": None if ratio is None else ratio.as_dict(),
        "largest_difference": round(off, 5),
        "fp32 MiB": mib["fp32"],
        "int8 MiB": mib["int8"],
    }


def main() -> int:
    """Quantise, measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "what", nargs="*", default=[f"reference:{stage}" for stage in STAGES], help="BUNDLE:STAGE"
    )
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
