"""TensorRT-RTX: engines made ahead of time, their kernels compiled on the card at first load.

    gpu = Gpu.open(device="rtx")
    engine = open_rtx(bundle, "encoder", bundle.path("encoder.onnx"), gpu)

What the card compiles is kept in the user's cache, so that only the first load waits for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..errors import DeviceError
from ..user_cache import cache_folder
from .driver import Card, probe
from .engine_cache import Candidate, need_engine
from .fingerprint import Fingerprint
from .gpu import Gpu
from .native_engine import NativeEngine
from .rtx_builder import rtx_fingerprint
from .scratch import Scratch
from .tensorrt_library import Library, library

KINDS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""GPUs that TensorRT-RTX 1.7 has engines for."""
_WORKSTATION = "Turing, Ampere, Ada Lovelace and Blackwell cards"
_FAULTS = {
    "VERSION_MISMATCH": "another version of TensorRT-RTX made it",
    "UNSUPPORTED_CC": "it was not made for this kind of GPU",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it; install a newer one",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it; install a newer one",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little free memory for it",
    "MALFORMED_ENGINE": "its bytes are damaged",
    "CUDA_ERROR": "CUDA failed while it was looked at",
}


def kind_of(card: Card) -> str:
    """A GPU's kind, for example sm_89."""
    return "sm_{}{}".format(*card.capability)


def rtx_here(lib: Library, path: Path, card: Card) -> Fingerprint:
    """What an engine of a graph has to match on this GPU.

    Raises
    ------
    DeviceError
        A kind of GPU that TensorRT-RTX does not run on.
    """
    kind = kind_of(card)
    if kind not in KINDS:
        raise DeviceError(
            f"TensorRT-RTX runs on {_WORKSTATION}, and {card.name} is {kind}; use device='cuda' "
            "or 'tensorrt'"
        )
    return replace(rtx_fingerprint(lib, path, (kind,)), gpu=card.name)


def open_rtx(
    bundle: Bundle, stage: str, path: Path, gpu: Gpu, scratch: Scratch | None = None
) -> NativeEngine:
    """Open the engine of a stage, from the user's cache or the bundle.

    Parameters
    ----------
    bundle : Bundle
    stage : str
    path : Path
        The stage's .onnx file.
    gpu : Gpu
        Opened before: without a driver the library must not be touched.
    scratch : Scratch, optional
        Memory for intermediate tensors that engines on this stream share.

    Raises
    ------
    MissingExtraError
        TensorRT-RTX is not installed.
    DeviceError
        A driver that is too old, or no engine that may run here; the message says why of each that
        was found, and how to make one.
    """
    lib = library("rtx")
    lib.need_driver(probe())
    candidate = need_engine(bundle, path.stem, rtx_here(lib, path, gpu.card))
    cache = _RuntimeCache(lib, candidate, gpu.card)
    engine = NativeEngine(
        stage,
        candidate.path.read_bytes(),
        lib,
        gpu,
        make_context=cache.context,
        scratch=scratch,
        judge=fault_finder(lib),
    )
    cache.save()
    return engine


def fault_finder(lib: Library) -> Callable[[Any, bytes], str]:
    """Asks the library about a plan before it is loaded; the reason for a no, or nothing."""

    def fault(runtime: Any, plan: bytes) -> str:
        validity, found = runtime.get_engine_validity(plan)
        if validity != lib.api.EngineValidity.INVALID:
            return ""
        bits = lib.api.EngineInvalidityDiagnostics.__members__
        told = [text for name, text in _FAULTS.items() if int(found) & int(bits[name])]
        return "; ".join(told) or "the library gives no reason"

    return fault


class _RuntimeCache:
    """Kernels that TensorRT-RTX has compiled on this card for one engine."""

    def __init__(self, lib: Library, candidate: Candidate, card: Card) -> None:
        self._lib = lib
        name = "".join(letter if letter.isalnum() else "-" for letter in card.name)
        folder = cache_folder() / "rtx-kernels" / lib.version
        self._file = folder / f"{candidate.path.stem}-{name}.bin"
        self._cache: Any = None

    def context(self, engine: Any, shared: bool) -> Any:
        """An execution context that takes compiled kernels from the cache, and adds to it."""
        kinds = self._lib.api.ExecutionContextAllocationStrategy
        config = engine.create_runtime_config()
        strategy = kinds.USER_MANAGED if shared else kinds.STATIC
        config.set_execution_context_allocation_strategy(strategy)
        # the caller captures whole chains; an engine's own graph would stand in the way
        config.cuda_graph_strategy = self._lib.api.CudaGraphStrategy.DISABLED
        self._cache = config.create_runtime_cache()
        if self._file.is_file():
            # one that does not fit is refused by the library, and written anew
            self._cache.deserialize(self._file.read_bytes())
        config.set_runtime_cache(self._cache)
        return engine.create_execution_context(config)

    def save(self) -> None:
        """Keep what was compiled; where the folder cannot be written, it is compiled again."""
        content = bytes(self._cache.serialize())
        if self._file.is_file() and self._file.stat().st_size == len(content):
            return
        scratch = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(content)
            scratch.replace(self._file)
        except OSError:
            scratch.unlink(missing_ok=True)
