"""Which backends run on this machine, and the command that makes the others run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .engines.cuda_needs import library_majors
from .engines.cuda_packages import cuda_majors
from .engines.driver import NEEDED_CUDA, Card, Driver, probe
from .engines.rtx import KINDS, kind_of
from .errors import DeviceError, MissingExtraError

_GPU = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'scanside[gpu]'"
_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_RTX = "pip install 'scanside[rtx]'"
_TENSORRT = "pip install tensorrt"
_LLAMA = (
    "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-binary llama-cpp-python "
    "llama-cpp-python"
)
_CUDA_RUNTIMES = ("onnxruntime-gpu", "nvidia-cublas", "nvidia-cudnn-cu13")
_RELEASE = Path("/etc/os-release")


def find_driver() -> tuple[Driver | None, str]:
    """The driver, or None and what is wrong with it."""
    try:
        return probe(), ""
    except DeviceError as exc:
        return None, str(exc)


def gpu_report(driver: Driver | None, wrong: str) -> dict[str, str]:
    """Driver, GPUs, CUDA majors of the installed libraries, and what each backend says.

    No library of CUDA is started where there is no driver that it can use.

    Parameters
    ----------
    driver, wrong : Driver or None, str
        From `find_driver`.
    """
    found: dict[str, str] = {}
    if driver is None:
        found["driver"] = f"none that can be used: {wrong}"
        found["to get one"] = _install_driver()
    else:
        found["driver"] = "for CUDA {}.{}".format(*driver.cuda)
        if driver.cuda < NEEDED_CUDA:
            found["to get a newer one"] = _install_driver()
        for card in driver.gpus:
            found[f"GPU {card.number}"] = (
                f"{card.name}, compute capability {card.capability[0]}.{card.capability[1]}, "
                f"{card.memory_bytes / 2**30:.0f} GiB"
            )
    found |= _majors(driver)
    found["cpu"] = "runs"
    card = driver.gpus[0] if driver and driver.gpus else None
    for backend, state in (
        ("cuda", _cuda), ("rtx", _rtx), ("tensorrt", _tensorrt), ("language on cuda", _language)
    ):  # fmt: skip
        lacks = [*_driver_lacks(driver), *state(card)]
        found[backend] = f"no: {'; and '.join(lacks)}" if lacks else _runs(backend)
    return found


def _majors(driver: Driver | None) -> dict[str, str]:
    """CUDA of every package that names one and of every library that is linked with it."""
    majors = cuda_majors() | library_majors()
    found = {"CUDA of libraries": ", ".join(f"{name} {n}" for name, n in majors.items()) or "none"}
    odd = sorted(name for name, major in majors.items() if major != NEEDED_CUDA[0])
    if odd:
        found["other CUDA"] = (
            f"{', '.join(odd)}: not for CUDA {NEEDED_CUDA[0]}, as this version's libraries are; "
            f"used in one process they clash, so install their builds for CUDA {NEEDED_CUDA[0]}"
        )
    newer = sorted(name for name, major in majors.items() if driver and major > driver.cuda[0])
    if newer and driver:
        found["too new for the driver"] = (
            f"{', '.join(newer)}; this driver runs CUDA {driver.cuda[0]} at most"
        )
    return found


def _driver_lacks(driver: Driver | None) -> list[str]:
    """Why no backend can run."""
    if driver is None:
        return ["it needs a driver"]
    if driver.cuda < NEEDED_CUDA:
        return ["it needs a newer driver, for CUDA {}.{}".format(*NEEDED_CUDA)]
    return []


def _install_driver() -> str:
    """The command of the systems that we know it of."""
    release = _RELEASE.read_text() if _RELEASE.is_file() else ""
    names = {line.partition("=")[2].strip('"') for line in release.splitlines() if line[:2] == "ID"}
    if any("ubuntu" in name for name in names):
        return "sudo apt install nvidia-driver-580-server, or a newer one"
    return "install the NVIDIA driver 580 or newer of your card, https://www.nvidia.com/drivers"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cuda(card: Card | None) -> list[str]:
    from .engines.onnx_cpu import onnxruntime
    from .engines.onnx_cuda_session import load_cuda

    lacks: list[str] = []
    if "CUDAExecutionProvider" not in onnxruntime().get_available_providers():
        return [f"this onnxruntime has no CUDA; {_GPU}"]
    if not _version("cuda-bindings"):
        lacks.append("cuda-python is not installed; pip install 'scanside[gpu]'")
    if card is None:
        missing = [name for name in _CUDA_RUNTIMES if not _version(name)]
        return lacks + ([f"{', '.join(missing)} is not installed; {_CUDA}"] if missing else [])
    try:
        load_cuda(onnxruntime())
    except DeviceError as exc:
        lacks.append(f"{exc}; {_CUDA}")
    return lacks


def _rtx(card: Card | None) -> list[str]:
    if card is not None and kind_of(card) not in KINDS:
        return [f"TensorRT-RTX has no engines for {kind_of(card)}; use cuda or tensorrt"]
    return _library("rtx", _RTX)


def _tensorrt(_: Card | None) -> list[str]:
    return _library("tensorrt", _TENSORRT)


def _library(backend: str, install: str) -> list[str]:
    from .engines.tensorrt_library import library

    try:
        library(backend)
    except MissingExtraError as exc:
        return [str(exc)]  # it says what to install
    except DeviceError as exc:
        return [f"{exc}; {install}"]
    return []


def _language(_: Card | None) -> list[str]:
    from .llama import llama_cpp

    if llama_cpp().llama_supports_gpu_offload():
        return []
    return [f"this llama.cpp is built without a GPU; say language=cpu, or {_LLAMA}"]


def _runs(backend: str) -> str:
    """What a backend that runs is."""
    from .engines.tensorrt_library import library

    if backend in ("rtx", "tensorrt"):
        name = library(backend).name
        return f"runs engines of {name}; scanside build BUNDLE --backend {backend} makes them"
    if backend == "cuda":
        return f"runs: onnxruntime-gpu {_version('onnxruntime-gpu')}"
    return "runs"
