"""Which form of a full-size graph is fastest in ONNX Runtime on a GPU?

    python benchmarks/gpu_variants.py SCRATCH --json benchmarks/results/gpu_variants.json

SCRATCH is the folder in which `gpu_suite.py` has drawn the weights. Attention and group
normalisation as the exporter writes them or as one operator each, channels outermost or innermost,
and who captures the CUDA graph. Answers of all variants of a graph are compared with those of its
first.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from gpu_measure import repeated, summary
from gpu_networks import inputs_of
from timing import machine, write

from scanside.export.attention_operator import fuse_attention_file
from scanside.export.group_norm_operator import fuse_group_norm_file
from scanside.runtime.engines.driver import probe
from scanside.runtime.engines.gpu import Gpu
from scanside.runtime.engines.onnx_cuda import Graph, OnnxCudaEngine
from scanside.runtime.errors import BundleError, DeviceError

Json = dict[str, Any]
OUTERMOST, INNERMOST = {"prefer_nhwc": "0"}, {"prefer_nhwc": "1"}
EXHAUSTIVE = {**OUTERMOST, "cudnn_conv_algo_search": "EXHAUSTIVE"}
ATTENTION, NORMS = "attention", "norms"
VARIANTS: tuple[tuple[str, tuple[str, ...], Mapping[str, str], str], ...] = (
    ("unet", (), OUTERMOST, "own"),
    ("unet", (ATTENTION,), OUTERMOST, "own"),
    ("unet", (ATTENTION,), INNERMOST, "own"),
    ("unet", (ATTENTION, NORMS), INNERMOST, "own"),
    ("unet", (NORMS,), INNERMOST, "own"),
    ("unet", (ATTENTION, NORMS), OUTERMOST, "own"),
    ("unet", (), INNERMOST, "own"),
    ("unet", (ATTENTION,), EXHAUSTIVE, "own"),
    ("unet", (ATTENTION,), OUTERMOST, "ort"),
    ("encoder", (), OUTERMOST, "own"),
    ("encoder", (ATTENTION,), OUTERMOST, "own"),
    ("vae_decoder", (), OUTERMOST, "own"),
    ("vae_decoder", (), INNERMOST, "own"),
    ("vae_decoder", (NORMS,), INNERMOST, "own"),
    ("vae_decoder", (NORMS,), OUTERMOST, "own"),
    ("vae_decoder", (), EXHAUSTIVE, "own"),
)
"""Graph, what is one operator, options of the provider, who captures; the likeliest gain first."""
RUNS = 60


def measure(
    path: Path, options: Mapping[str, str], captured_by: str, first: np.ndarray | None
) -> tuple[Json, np.ndarray]:
    """Times of one variant, and its first output."""
    gpu = Gpu.open()
    engine = OnnxCudaEngine(path.stem, path, gpu, graph=cast(Graph, captured_by), options=options)
    outputs = engine.run(inputs_of(engine))
    output = next(iter(outputs.values())).astype(np.float64)
    if not np.isfinite(output).all():
        raise DeviceError(f"{path.stem} gives numbers that are not finite")

    def work() -> None:
        engine.launch()
        gpu.wait()

    wall = summary(repeated(work, RUNS, warm=10))
    base = output if first is None else first
    row = {
        "captured": engine.captured,
        "nodes": sum(sum(kinds.values()) for kinds in engine.nodes.values()),
        "farther_from_default": float(np.abs(output - base).max() / np.abs(base).max()),
        "wall_ms": wall,
    }
    engine.close()
    gpu.close()
    return row, output


def variant(folder: Path, name: str, fused: tuple[str, ...]) -> Path:
    """A graph with some of its parts as one operator each, beside the plain one: both read the same
    file of weights."""
    if not fused:
        return folder / f"{name}.onnx"
    path = folder / f"{name}_{'_'.join(fused)}.onnx"
    shutil.copyfile(folder / f"{name}.onnx", path)
    if NORMS in fused:
        fuse_group_norm_file(path)
    if ATTENTION in fused:
        fuse_attention_file(path)
    return path


def main() -> int:
    """Measure every variant and print one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result here")
    args = parser.parse_args()
    about = machine()
    try:
        card = probe().gpus[0].name
    except DeviceError as exc:
        raise SystemExit(str(exc)) from exc
    rows: list[Json] = []
    first: dict[str, np.ndarray] = {}
    for name, fused, options, captured_by in VARIANTS:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        what = {"graph": name, "one_operator": ", ".join(fused) or "nothing", "options": given}
        try:
            path = variant(args.scratch / "full", name, fused)
            row, output = measure(path, options, captured_by, first.get(name))
        except (DeviceError, BundleError) as exc:
            row = {"failed": str(exc)}
        else:
            first.setdefault(name, output)
        rows.append({**what, "captured_by": captured_by, **row})
        print(rows[-1], file=sys.stderr, flush=True)
    question = "which form of a full-size graph is fastest in ONNX Runtime on a GPU"
    write({"question": question, **about, "gpu": card, "runs": RUNS, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
