"""Which form of a full-size graph is fastest in ONNX Runtime on a GPU?

    python benchmarks/gpu_variants.py SCRATCH --json benchmarks/results/gpu_variants.json

SCRATCH is the folder in which `gpu_suite.py` has drawn the weights. Parts of a graph as the
exporter writes them or as one operator each, channels outermost or innermost, biases of
convolutions in them or after them, products as the library chooses them or tuned, attention by
cuDNN. All answers are compared with those of ONNX Runtime on the CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_measure import repeated, summary
from gpu_networks import differences, inputs_of
from gpu_prepare import plain_file
from timing import machine, write

from scanside.export.fusing import FUSIONS
from scanside.runtime.engines.driver import probe
from scanside.runtime.engines.gpu import Gpu
from scanside.runtime.engines.onnx_cuda import OnnxCudaEngine
from scanside.runtime.errors import BundleError, DeviceError

Json = dict[str, Any]
OUTERMOST, INNERMOST = {"prefer_nhwc": "0"}, {"prefer_nhwc": "1"}
WITH_BIAS = {**INNERMOST, "fuse_conv_bias": "1"}
EXHAUSTIVE = {**WITH_BIAS, "cudnn_conv_algo_search": "EXHAUSTIVE"}
TUNED = {"ORT_CUDA_GEMM_AUTO_TUNE": "1"}
CUDNN = {"ORT_ENABLE_CUDNN_FLASH_ATTENTION": "1"}
LINEAR = ("attention", "packed", "gelu", "skip")
EVERY = tuple(FUSIONS)
AT_ONE_SIZE = tuple(name for name in FUSIONS if name != "upsample")
VARIANTS: tuple[tuple[str, tuple[str, ...], Mapping[str, str], Mapping[str, str]], ...] = (
    ("preview_decoder", ("upsample",), INNERMOST, {}),
    ("preview_decoder", (), INNERMOST, {}),
    ("vae_decoder", ("norms", "upsample"), INNERMOST, {}),
    ("vae_decoder", ("norms",), INNERMOST, {}),
    ("unet", EVERY, INNERMOST, {}),
    ("unet", AT_ONE_SIZE, INNERMOST, {}),
    ("unet", AT_ONE_SIZE, INNERMOST, CUDNN),
    ("encoder", LINEAR, INNERMOST, {}),
    ("unet", EVERY, WITH_BIAS, TUNED),
    ("vae_decoder", (), INNERMOST, {}),
    ("vae_decoder", (), OUTERMOST, {}),
    ("encoder", (), INNERMOST, {}),
    ("encoder", ("attention",), INNERMOST, {}),
    ("preview_decoder", (), OUTERMOST, {}),
    ("unet", ("attention", "norms"), INNERMOST, {}),
    ("unet", ("attention",), INNERMOST, {}),
    ("unet", (), INNERMOST, {}),
    ("unet", (), OUTERMOST, {}),
    ("vae_decoder", ("norms",), EXHAUSTIVE, {}),
)
"""Graph, what is one operator, options of the provider, environment; the likeliest gain first."""
RUNS = 60


def measure(scratch: Path, name: str, path: Path, options: Mapping[str, str]) -> Json:
    """How far one variant is from the CPU's answers, and its times."""
    gpu = Gpu.open()
    engine = OnnxCudaEngine(path.stem, path, gpu, options=options)
    try:
        apart = differences(scratch, name, engine.run(inputs_of(engine)))
    except SystemExit as exc:  # it has to be one row of all
        raise DeviceError(str(exc)) from exc

    def work() -> None:
        engine.launch()
        gpu.wait()

    wall = summary(repeated(work, RUNS, warm=10))
    row = {
        "captured": engine.captured,
        "nodes": sum(sum(kinds.values()) for kinds in engine.nodes.values()),
        "differences": apart,
        "wall_ms": wall,
    }
    engine.close()
    gpu.close()
    return row


def variant(folder: Path, name: str, fused: tuple[str, ...]) -> Path:
    """A graph with some of its parts as one operator each, beside the plain one: both read the same
    file of weights."""
    if not fused:
        return plain_file(folder, name)
    path = folder / f"{name}_{'_'.join(fused)}.onnx"
    if not path.is_file():
        part = path.with_name(f"{path.stem}.part.onnx")  # beside the weights, as it is
        shutil.copyfile(plain_file(folder, name), part)
        for each in fused:
            FUSIONS[each](part)
        part.replace(path)
    return path


@contextmanager
def surroundings(wanted: Mapping[str, str]) -> Generator[None]:
    """The environment with some settings more."""
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            del os.environ[name]


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
    for name, fused, options, more in VARIANTS:
        given = ", ".join(f"{key}={value}" for key, value in {**options, **more}.items())
        what = {"graph": name, "one_operator": ", ".join(fused) or "nothing", "options": given}
        try:
            path = variant(args.scratch / "full", name, fused)
            with surroundings(more):
                row = measure(args.scratch, name, path, options)
        except (DeviceError, BundleError) as exc:
            row = {"failed": str(exc)}
        rows.append({**what, **row})
        print(rows[-1], file=sys.stderr, flush=True)
    question = "which form of a full-size graph is fastest in ONNX Runtime on a GPU"
    write({"question": question, **about, "gpu": card, "runs": RUNS, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
