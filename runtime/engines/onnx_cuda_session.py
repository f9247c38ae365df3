"""A session of ONNX Runtime on a GPU, without the CPU behind it; what fails is one sentence."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..errors import BundleError, DeviceError, MissingExtraError
from .cuda_needs import library_majors
from .cuda_packages import load_cuda_packages
from .driver import NEEDED_CUDA
from .gpu import Gpu
from .onnx_cpu import first_line
from .placement import node_placement

PROVIDER = "CUDAExecutionProvider"
Graph = Literal["own", "ort", "off"]
"""Who captures the CUDA graph: we around ONNX Runtime's run, ONNX Runtime itself, or nobody."""
_FAILURE = re.compile(r"CU[A-Z]+ failure [^;]*")
"""What a library of CUDA said, in a message that names sources and templates before it."""
_FULL = re.compile(r"out of memory|Failed to allocate memory|STATUS_ALLOC_FAILED", re.IGNORECASE)
"""What ONNX Runtime and the libraries of CUDA say when the GPU's memory is used up."""
_WARNINGS, _ERRORS = 2, 3
"""ONNX Runtime's severities; the first is its own default."""
_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": "0",
}
"""The provider's own defaults are EXHAUSTIVE, which takes long and chose convolutions that made the
full-size VAE twelve times as slow on an H200 (`benchmarks/gpu_variants.py`), and TF32, which rounds
float32."""


@cache
def load_cuda(ort: Any) -> None:
    """Load CUDA and cuDNN from where pip put them, once.

    Raises
    ------
    MissingExtraError
        This ONNX Runtime has no CUDA.
    DeviceError
        A library of CUDA cannot be loaded.
    """
    if PROVIDER not in ort.get_available_providers():
        raise MissingExtraError(
            f"onnxruntime {ort.__version__} is the one without CUDA; run pip uninstall -y "
            "onnxruntime onnxruntime-gpu && pip install 'scanside[gpu]'"
        )
    major = library_majors().get("onnxruntime", NEEDED_CUDA[0])
    if major != NEEDED_CUDA[0]:
        raise DeviceError(
            f"onnxruntime {ort.__version__} is built for CUDA {major}, and scanside's libraries "
            f"are for CUDA {NEEDED_CUDA[0]}; run pip uninstall -y onnxruntime onnxruntime-gpu && "
            "pip install 'scanside[gpu]'"
        )
    load_cuda_packages()
    said = io.StringIO()
    with redirect_stdout(said):  # it prints, and stdout may be a JSON document
        ort.preload_dlls()
    failed = [line for line in said.getvalue().splitlines() if line.startswith("Failed to load")]
    if failed:
        raise DeviceError(
            f"onnxruntime {ort.__version__} needs CUDA's libraries, and not all load "
            f"({'; '.join(failed)}); run pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )


def open_session(
    ort: Any, stage: str, path: Path, gpu: Gpu, graph: Graph, options: Mapping[str, str]
) -> Any:
    """A session in which no node may run on the CPU.

    Raises
    ------
    DeviceError
        Nodes that the GPU has no kernels for, too little memory, or a failure of CUDA's libraries.
    BundleError
        A graph that this ONNX Runtime does not load.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    wanted = {
        "device_id": str(gpu.number),
        "user_compute_stream": str(gpu.stream),
        "enable_cuda_graph": "1" if graph == "ort" else "0",
        **_OPTIONS,
        **options,
    }
    providers = [(PROVIDER, wanted)]
    try:
        with _without_warnings(ort):
            # enable_fallback=0: else a provider that cannot start is replaced by the CPU
            session = ort.InferenceSession(path, settings, providers=providers, enable_fallback=0)
    except Exception as exc:  # onnxruntime's errors share no base of their own
        said = first_line(exc)
        if "fallback to CPU EP" in said:
            nodes = _left_to_the_cpu(ort, path, wanted)
            raise DeviceError(
                f"the {stage} graph has nodes that onnxruntime {ort.__version__} would run on the "
                f"CPU{nodes}; export the bundle again, or write {stage}=cpu into the device"
            ) from exc
        raise told(stage, gpu, said) or BundleError(
            f"{path}: onnxruntime {ort.__version__} cannot load it ({said}); export the bundle "
            "again"
        ) from exc
    used = session.get_providers()
    if used[:1] != [PROVIDER]:
        raise DeviceError(
            f"{stage} was asked for on {PROVIDER}, but onnxruntime opened it on "
            f"{', '.join(used)}; run scanside doctor"
        )
    return session


@contextmanager
def _without_warnings(ort: Any) -> Generator[None]:
    """For each session onnxruntime 1.31 warns on stderr that no plugin has CUDA, which it then
    finds in itself; its errors are exceptions."""
    ort.set_default_logger_severity(_ERRORS)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)


def _left_to_the_cpu(ort: Any, path: Path, options: Mapping[str, str]) -> str:
    """Which operators of a graph the GPU has no kernels for, from a second look that allows it."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = [(PROVIDER, {**options, "enable_cuda_graph": "0"})]
    try:
        session = ort.InferenceSession(path, settings, providers=providers, enable_fallback=0)
        placed = node_placement(session.get_provider_graph_assignment_info())
    except Exception:  # the first look's error is told in any case
        return ""
    placed.pop(PROVIDER, None)
    left = sum(placed.values(), Counter[str]())
    return f" ({', '.join(f'{kind} x {n}' for kind, n in sorted(left.items()))})" if left else ""


def told(stage: str, gpu: Gpu, said: str) -> DeviceError | None:
    """What ONNX Runtime said as an error of the device, if it is one.

    Parameters
    ----------
    stage : str
    gpu : Gpu
    said : str
        The first line of ONNX Runtime's own error.
    """
    found = _FAILURE.search(said)
    failure = found[0].strip() if found else said
    if _FULL.search(said):
        return DeviceError(
            f"{gpu.card.name} has too little free memory for the {stage} ({failure}); close what "
            f"else uses it, which nvidia-smi lists, or write {stage}=cpu into the device"
        )
    return (
        DeviceError(f"{stage} failed on the GPU: {failure}; run scanside doctor") if found else None
    )
