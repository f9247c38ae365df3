"""The graphs of a bundle, each opened on the device that was chosen for its stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .bundle import Bundle
from .engines.driver import need_gpu
from .engines.engine import Engine
from .engines.gpu import Gpu
from .engines.onnx_cpu import OnnxEngine
from .engines.onnx_cuda import HALF_OPTIONS, OnnxCudaEngine
from .engines.rtx import open_rtx
from .engines.scratch import Scratch
from .engines.tensorrt import open_tensorrt
from .memory_plan import CONTEXT_BYTES, MemoryPlan, plan_memory

_OPEN_THEIR_OWN = ("preprocess", "language")
"""Stages that are no graph: the kernel and llama.cpp open their GPU themselves."""


class Engines:
    """The graphs of a bundle, each on the device chosen for its stage.

    Those on a GPU share one `Gpu`, whose driver is asked before any other library is touched.

    Raises
    ------
    DeviceError
        A GPU that was asked for and cannot be used, or whose memory does not suffice.
    MissingExtraError
        cuda-python is not installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        devices: Mapping[str, str],
        threads: int,
        vram_bytes: int | None = None,
    ) -> None:
        self._bundle = bundle
        self._devices = devices
        self._threads = threads
        self.opened: list[Engine] = []
        wanted = {stage: name for stage, name in devices.items() if name != "cpu"}
        plan = plan_memory(bundle, devices)
        if vram_bytes is not None:
            plan.check(vram_bytes, "'vram'")
        if wanted:
            card = need_gpu(next(iter(wanted.values())))
            plan.check(card.memory_bytes, card.name)
        graphs = [name for stage, name in wanted.items() if stage not in _OPEN_THEIR_OWN]
        self.gpu = _gpu_with_room(plan, graphs[0]) if graphs else None
        self._scratch: Scratch | None = None
        self._scratch_bytes = plan.shared_bytes

    def open(self, stage: str, file: str) -> Engine:
        """Open the graph of a stage."""
        path, device = self._bundle.path(file), self._devices[stage]
        if device == "cpu":
            engine: Engine = OnnxEngine(stage, path, self._threads)
        else:
            assert self.gpu is not None, "opened for any device but the CPU"
            half = self._bundle.manifest.files[file].precision == "fp16"
            engine = self._on_gpu(self.gpu, device, stage, path, half)
        self.opened.append(engine)
        return engine

    def _on_gpu(self, gpu: Gpu, device: str, stage: str, path: Path, half: bool) -> Engine:
        if device == "cuda":
            return OnnxCudaEngine(stage, path, gpu, options=HALF_OPTIONS if half else None)
        opener = open_rtx if device == "rtx" else open_tensorrt
        # one stream, so one buffer for all
        self._scratch = self._scratch or Scratch(gpu, self._scratch_bytes)
        return opener(self._bundle, stage, path, gpu, self._scratch)

    def close(self) -> None:
        """Free the graphs, then the GPU that they share; may be called twice."""
        for engine in self.opened:
            engine.close()
        self.opened.clear()
        if self.gpu:
            self.gpu.close()


def _gpu_with_room(plan: MemoryPlan, device: str) -> Gpu:
    """Open a GPU; DeviceError where others have loaded so much on it that the plan does not fit."""
    gpu = Gpu.open(device=device)
    try:
        # what a context takes is taken by now
        plan.check(
            gpu.free_bytes + CONTEXT_BYTES, f"{gpu.card.name}, beside what others have on it,"
        )
    except BaseException:
        gpu.close()
        raise
    return gpu


def open_stage(
    bundle: Bundle, devices: Mapping[str, str], threads: int, stage: str, file: str
) -> Engine:
    """One graph by itself, on the CPU."""
    assert devices[stage] == "cpu", "a GPU is shared by `Engines`"
    return OnnxEngine(stage, bundle.path(file), threads)
