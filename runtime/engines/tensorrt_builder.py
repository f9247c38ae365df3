"""Engines of TensorRT 10 and 11, built on the GPU that they are for.

Two builds of one graph differ in speed, since each tries its kernels anew, so several are made and
the fastest is kept, with its measured latency. What it was compared by is the median of whole runs,
each waited for.

The builder needs a GPU and libraries that are not on the package index; nothing here has been
measured yet. That every name which is used exists is tested against the bindings.
"""

from __future__ import annotations

import hashlib
import re
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DeviceError, InputError
from .driver import Card, probe
from .engine_cache import hash_of_graph
from .engine_record import Record
from .fingerprint import PORTABLE, Fingerprint, profile_of, this_system
from .gpu import Gpu
from .graph_file import GraphFile
from .native_engine import NativeEngine
from .plan_builder import Built, Progress, build_plan
from .tensorrt_library import Library

_WARM, _TIMED = 20, 100
"""Runs before and while a build is timed."""
_LINUX = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How TensorRT engines are built."""

    builds: int = 3
    """Builds of each graph, of which the fastest is kept."""
    portable: bool = False
    """Engines that later versions of the same major run too, and the lean runtime. They are
    slower."""
    timing_cache: Path | None = None
    """Remembered timings of kernels, for development: builds are quick, and bound to the GPU on
    which it was filled; engines may be slower."""

    def __post_init__(self) -> None:
        if self.builds < 1:
            raise InputError(f"'builds' must be at least 1; got {self.builds}")

    @property
    def flags(self) -> tuple[str, ...]:
        """As the fingerprint has them."""
        return ("strongly-typed", *((PORTABLE,) if self.portable else ()))


def driver_version() -> str:
    """The NVIDIA driver's version, for example 580.65.06; what it says of CUDA where that is all
    that can be read."""
    try:
        text = _LINUX.read_text()
    except OSError:
        text = ""
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else "CUDA {}.{}".format(*probe().cuda)


def tensorrt_fingerprint(
    library: Library, path: Path, card: Card, flags: tuple[str, ...]
) -> Fingerprint:
    """Of an engine that is built here: it is bound to this model of GPU."""
    return Fingerprint(
        onnx=hash_of_graph(path),
        backend=library.backend,
        version=library.version,
        capabilities=("sm_{}{}".format(*card.capability),),
        gpu=card.name,
        driver=driver_version(),
        profile=profile_of(GraphFile.read(path).inputs),
        flags=flags,
        system=this_system(),
    )


def build_tensorrt(
    library: Library,
    stage: str,
    path: Path,
    gpu: Gpu,
    options: BuildOptions,
    progress: Progress | None = None,
) -> tuple[Record, bytes]:
    """Build an engine several times, and keep the fastest.

    Parameters
    ----------
    library : Library
        TensorRT 10 or 11.
    stage : str
    path : Path
        The .onnx file; every number's precision is in it.
    gpu : Gpu
        Opened before: without a driver the library must not be touched.
    options : BuildOptions
    progress : callable, optional

    Raises
    ------
    DeviceError
        The lean runtime, which builds nothing; a node that is rejected; an engine that fails.
    """
    if not library.builds:
        raise DeviceError(
            f"{library.name} is the lean runtime, which runs engines and builds none; run pip "
            "install tensorrt on the machine that builds"
        )
    best: tuple[float, Built] | None = None
    for _ in range(options.builds):
        built = _build_once(library, path, gpu, options, progress)
        latency = _median_ms(library, stage, built.plan, gpu)
        if best is None or latency < best[0]:
            best = latency, built
    assert best is not None
    latency, built = best
    record = Record(
        stage=stage,
        fingerprint=tensorrt_fingerprint(library, path, gpu.card, options.flags),
        sha256=hashlib.sha256(built.plan).hexdigest(),
        size_bytes=len(built.plan),
        weights_bytes=built.weights_bytes,
        activation_bytes=built.activation_bytes,
        layers=built.layers,
        latency_ms=round(latency, 4),
    )
    return replace(record, builds=options.builds), built.plan


def _build_once(
    library: Library, path: Path, gpu: Gpu, options: BuildOptions, progress: Progress | None
) -> Built:
    api = library.api
    caches: list[Any] = []

    def configure(config: Any) -> None:
        if options.portable:
            config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
            # else the plan holds code, which nobody here would run
            config.set_flag(api.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        if options.timing_cache:
            known = options.timing_cache
            cache = config.create_timing_cache(known.read_bytes() if known.is_file() else b"")
            # False: timings of another GPU are refused
            if not config.set_timing_cache(cache, False):
                raise DeviceError(f"{known} holds timings of another GPU; delete it")
            caches.append(cache)

    with gpu.current():
        built = build_plan(library, path, configure, progress)
    if options.timing_cache:
        (cache,) = caches
        options.timing_cache.write_bytes(bytes(cache.serialize()))
    return built


def _median_ms(library: Library, stage: str, plan: bytes, gpu: Gpu) -> float:
    """Milliseconds of one run on whatever the fresh buffers hold, which are zeros."""
    engine = NativeEngine(stage, plan, library, gpu)
    times: list[float] = []
    try:
        for _ in range(_WARM + _TIMED):
            began = time.perf_counter()
            engine.launch()
            gpu.wait()
            times.append(time.perf_counter() - began)
    finally:
        engine.close()
    return 1e3 * statistics.median(times[_WARM:])
