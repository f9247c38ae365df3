"""How the parts of the GPU suite time work, on the clock of the wall and of the GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timing import percentiles_ms

from scanside.kernels.cuda_driver import call
from scanside.runtime.engines.gpu import Gpu

Json = dict[str, Any]
LIMITS_MS = {
    "encoder": 0.8,
    "unet": 4.0,
    "vae_decoder": 8.0,
    "preview_decoder": 0.8,
    "preview through the tiny decoder": 3.0,
    "preview through the VAE": 10.0,
    "1 step, tiny decoder": 10.0,
    "4 steps, VAE": 40.0,
    "prefill": 20.0,
    "token": 5.0,
    "fork": 1.0,
    "first token": 28.0,
    "first caption token": 28.0,
}
"""What each is meant to take at most on an H200: engines in the median, answers at p99."""


def seeded(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, NDArray[Any]]:
    """The same standard normal inputs for every contender, by name: (shape, dtype)."""
    rng = np.random.default_rng(7)
    return {
        name: rng.standard_normal(shape).astype(np.float32).astype(dtype)
        for name, (shape, dtype) in sorted(tensors.items())
    }


def repeated(work: Callable[[], object], runs: int, warm: int) -> list[float]:
    """Wall times in seconds of `work`, which waits for its own end."""
    for _ in range(warm):
        work()
    seconds: list[float] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(runs):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
    finally:
        gc.enable()
    return seconds


def gpu_seconds(gpu: Gpu, enqueue: Callable[[], object], runs: int) -> list[float]:
    """Times on the GPU between events around `enqueue`, which does not wait."""
    with gpu.current():
        begin, end = call("cuEventCreate", 0), call("cuEventCreate", 0)
    seconds: list[float] = []
    for _ in range(runs):
        with gpu.current():
            call("cuEventRecord", begin, gpu.stream)
        enqueue()
        with gpu.current():
            call("cuEventRecord", end, gpu.stream)
            call("cuEventSynchronize", end)
            seconds.append(float(call("cuEventElapsedTime", begin, end)) / 1e3)
    return seconds


def judged(name: str, summary: Json, which: str) -> Json:
    """The limit of `name` beside the percentile that it is meant for."""
    limit, found = LIMITS_MS[name], summary.get(which)
    met = None if found is None else bool(found <= limit)
    return {"limit_ms": limit, "judged_by": which, "met": met}


def summary(seconds: list[float]) -> Json:
    """Percentiles in milliseconds."""
    return dict(percentiles_ms(seconds))


def distance(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """||found - wanted|| / ||wanted||; NaN where one is not finite."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def resident_mib() -> float:
    """Memory of this process on the host."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def device_mib(gpu: Gpu) -> float:
    """Memory of the GPU that is in use, by whatever process."""
    with gpu.current():
        free, total = call("cuMemGetInfo")
    return (int(total) - int(free)) / 2**20
