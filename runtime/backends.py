"""Which backends run on this machine, and the command that makes the others run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .engines.cuda_packages import cuda_majors
from .engines.driver import NEEDED_CUDA, Card, Driver, probe
from .engines.rtx import KINDS, kind_of
from .errors import DeviceError, MissingExtraError

_GPU = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'scanside[gpu]'"
_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_LLAMA = (
    "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-binary llama-cpp-python "
    "llama-cpp-python"
)


def gpu_report() -> dict[str, str]:
    """Driver, GPUs, CUDA majors of the installed packages, and what each backend says.

    Nothing but the driver is touched where there is none.
    """
    found: dict[str, str] = {}
    driver: Driver | None = None
    try:
        driver = probe()
        found["driver"] = "for CUDA {}.{}".format(*driver.cuda)
        for card in driver.gpus:
            found[f"GPU {card.number}"] = (
                f"{card.name}, compute capability {card.capability[0]}.{card.capability[1]}, "
                f"{card.memory_bytes / 2**30:.0f} GiB"
            )
    except DeviceError as exc:
        found["driver"] = f"none that can be used: {exc}"
    majors = cuda_majors()
    found["CUDA of packages"] = ", ".join(f"{name} {n}" for name, n in majors.items()) or "none"
    odd = sorted(name for name, major in majors.items() if major != NEEDED_CUDA[0])
    if odd:
        found["other CUDA"] = (
            f"{', '.join(odd)}: not for CUDA {NEEDED_CUDA[0]}, as this version's libraries are; "
            "used in one process they clash, so install their builds for CUDA 13"
        )
    found["cpu"] = "runs"
    for backend, state in (("cuda", _cuda), ("rtx", _rtx), ("tensorrt", _tensorrt)):
        found[backend] = _unusable(driver) or state(driver.gpus[0] if driver else None)
    found["language on cuda"] = _unusable(driver) or _language()
    return found


def _unusable(driver: Driver | None) -> str:
    """Why no backend can run; "" if one may."""
    if driver is None:
        return "no: there is no driver; install the NVIDIA driver 580 or newer of your card"
    if driver.cuda < NEEDED_CUDA:
        return "no: the driver is too old; install NVIDIA driver 580 or newer"
    return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cuda(_: Card | None) -> str:
    from .engines.onnx_cpu import onnxruntime
    from .engines.onnx_cuda import load_cuda

    if not _version("cuda-bindings"):
        return "no: cuda-python is not installed; pip install 'scanside[gpu]'"
    try:
        load_cuda(onnxruntime())
    except MissingExtraError:
        return f"no: this onnxruntime has no CUDA; {_GPU}"
    except DeviceError as exc:
        return f"no: {exc}; {_CUDA}"
    return f"runs: onnxruntime-gpu {_version('onnxruntime-gpu')}"


def _rtx(card: Card | None) -> str:
    if card is not None and kind_of(card) not in KINDS:
        return f"no: TensorRT-RTX has no engines for {kind_of(card)}; use cuda or tensorrt"
    return _engines("rtx", "tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings")


def _tensorrt(_: Card | None) -> str:
    return _engines("tensorrt", "tensorrt-cu13-bindings tensorrt-cu13-libs")


def _engines(backend: Any, packages: str) -> str:
    from .engines.tensorrt_library import library

    try:
        lib = library(backend)
    except MissingExtraError as exc:
        return f"no: {exc}"
    except DeviceError as exc:
        return f"no: {exc}; pip install {packages}"
    return f"runs engines of {lib.name}; scanside build BUNDLE --backend {backend} makes them"


def _language() -> str:
    from .llama import llama_cpp

    if not llama_cpp().llama_supports_gpu_offload():
        return f"no: this llama.cpp is built without a GPU; say language=cpu, or {_LLAMA}"
    return "runs"
