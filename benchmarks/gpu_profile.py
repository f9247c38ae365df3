"""Which kernels a full-size graph spends its time in, in ONNX Runtime on a GPU.

    python benchmarks/gpu_profile.py SCRATCH --json FILE

SCRATCH is the folder in which `gpu_suite.py` has drawn the weights. One launch of each graph as it
lies there, seen by PyTorch's profiler: every kernel of the process with its time. Kernels of one
name are summed up.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from gpu_networks import inputs_of
from gpu_prepare import NETWORKS
from timing import machine, write

from scanside.runtime.engines.driver import probe
from scanside.runtime.engines.gpu import Gpu
from scanside.runtime.engines.onnx_cuda import HALF_OPTIONS, OnnxCudaEngine
from scanside.runtime.errors import DeviceError

Json = dict[str, Any]
SHOWN = 30
"""Kernels that are listed; the others are one row."""
LAUNCHES = 5


def profile(path: Path) -> Json:
    """Milliseconds of each kernel of a launch, the longest first."""
    import torch
    from torch.profiler import ProfilerActivity

    gpu = Gpu.open()
    engine = OnnxCudaEngine(path.stem, path, gpu, options=HALF_OPTIONS)
    engine.run(inputs_of(engine))
    torch.cuda.init()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(LAUNCHES):
            engine.launch()
        gpu.wait()
    took: dict[str, list[float]] = defaultdict(list)
    for event in seen.events():
        took[event.name].append(event.device_time_total / 1e3)
    rows = [
        {"kernel": name[:160], "times": len(each) / LAUNCHES, "ms": sum(each) / LAUNCHES}
        for name, each in sorted(took.items(), key=lambda item: -sum(item[1]))
    ]
    engine.close()
    gpu.close()
    rest = rows[SHOWN:]
    return {
        "kernels": sum(row["times"] for row in rows),
        "sum_ms": sum(row["ms"] for row in rows),
        "rows": rows[:SHOWN],
        "others_ms": sum(row["ms"] for row in rest),
    }


def main() -> int:
    """Profile every graph, and print one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result here")
    args = parser.parse_args()
    try:
        card = probe().gpus[0].name
    except DeviceError as exc:
        raise SystemExit(str(exc)) from exc
    found: Json = {**machine(), "gpu": card}
    for name in NETWORKS:
        found[name] = profile(args.scratch / "full" / f"{name}.onnx")
        print(name, found[name]["kernels"], found[name]["sum_ms"], file=sys.stderr, flush=True)
    write({"question": "which kernels a graph spends its time in", **found}, args.json)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # PyTorch's profiler frees memory twice at the end of such a process
