"""TensorRT 10 and 11 behind one adapter, the lean runtime among them.

    gpu = Gpu.open(device="tensorrt")
    engine = open_tensorrt(bundle, "encoder", bundle.path("encoder.onnx"), gpu)

Precision lives in the ONNX file and shapes are static, so nothing is left that the two versions do
differently: no precision flags, no calibration, no profiles.
"""

from __future__ import annotations

from pathlib import Path

from ..bundle import Bundle
from .driver import Card, probe
from .engine_cache import need_engine
from .fingerprint import PORTABLE, Fingerprint
from .gpu import Gpu
from .native_engine import NativeEngine
from .scratch import Scratch
from .tensorrt_builder import tensorrt_fingerprint
from .tensorrt_library import Library, library


def tensorrt_here(lib: Library, path: Path, card: Card) -> Fingerprint:
    """What an engine of a graph has to match on this GPU; the lean runtime runs only those that
    were built to be version-compatible."""
    flags = ("strongly-typed",) if lib.builds else ("strongly-typed", PORTABLE)
    return tensorrt_fingerprint(lib, path, card, flags)


def open_tensorrt(
    bundle: Bundle, stage: str, path: Path, gpu: Gpu, scratch: Scratch | None = None
) -> NativeEngine:
    """Open the engine of a stage, from the user's cache.

    Parameters
    ----------
    bundle : Bundle
    stage : str
    path : Path
        The stage's .onnx file.
    gpu : Gpu
        Opened before: without a driver the library must not be touched, the lean runtime would end
        the process.
    scratch : Scratch, optional
        Memory for intermediate tensors that engines on this stream share.

    Raises
    ------
    MissingExtraError
        TensorRT is not installed.
    DeviceError
        Another version than 10 and 11, a driver that is too old, or no engine that may run here;
        the message says why of each that was found, and how to make one.
    """
    lib = library("tensorrt")
    lib.need_driver(probe())
    candidate = need_engine(bundle, path.stem, tensorrt_here(lib, path, gpu.card))
    return NativeEngine(stage, candidate.path.read_bytes(), lib, gpu, scratch=scratch)
