"""What NVIDIA driver and GPUs this machine has, asked of libcuda itself.

This comes before any other library is touched: some of them end the process, or quietly compute on
the CPU, where no driver is. It needs no package, only ctypes.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from ..errors import DeviceError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR, _CORES = 75, 76, 16
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR, and MULTIPROCESSOR_COUNT."""
NEEDED_CUDA = (13, 0)
"""What the libraries of this version are built for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One GPU as the driver describes it."""

    number: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    multiprocessors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The driver of this machine."""

    cuda: tuple[int, int]
    """The newest CUDA that it runs, major and minor."""
    gpus: tuple[Card, ...]


def probe() -> Driver:
    """The driver and what it finds.

    Raises
    ------
    DeviceError
        No driver, one that does not start, or no GPU.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as exc:
        raise DeviceError(
            f"no NVIDIA driver was found ({_LIBRARY} cannot be loaded); install the driver of your "
            "card, or use device='cpu'"
        ) from exc
    _asked(library, "cuInit", 0)
    version, count = ctypes.c_int(), ctypes.c_int()
    _asked(library, "cuDriverGetVersion", ctypes.byref(version))
    _asked(library, "cuDeviceGetCount", ctypes.byref(count))
    if not count.value:
        raise DeviceError("the NVIDIA driver finds no GPU; look at nvidia-smi, or use device='cpu'")
    cuda = version.value // 1000, version.value % 1000 // 10
    return Driver(cuda=cuda, gpus=tuple(_gpu(library, n) for n in range(count.value)))


def need_gpu(device: str, number: int = 0) -> Card:
    """The GPU on which a backend is to run.

    Parameters
    ----------
    device : str
        What was asked for, for the message: cuda, rtx, tensorrt.
    number : int

    Raises
    ------
    DeviceError
        No driver, one that is too old, or no such GPU.
    """
    try:
        driver = probe()
    except DeviceError as exc:
        raise DeviceError(f"device {device!r} was asked for, but {exc}") from exc
    if driver.cuda < NEEDED_CUDA:
        raise DeviceError(
            f"device {device!r} needs a driver for CUDA {_dotted(NEEDED_CUDA)}, and this one is "
            f"for CUDA {_dotted(driver.cuda)}; install NVIDIA driver 580 or newer, or use "
            "device='cpu'"
        )
    if not 0 <= number < len(driver.gpus):
        raise DeviceError(
            f"GPU {number} was asked for, but the driver finds {len(driver.gpus)}, counted from 0"
        )
    return driver.gpus[number]


def _gpu(library: ctypes.CDLL, number: int) -> Card:
    handle, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(128)
    _asked(library, "cuDeviceGet", ctypes.byref(handle), number)
    _asked(library, "cuDeviceGetName", name, len(name), handle)
    _asked(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    told: list[int] = []
    for attribute in (_MAJOR, _MINOR, _CORES):
        value = ctypes.c_int()
        _asked(library, "cuDeviceGetAttribute", ctypes.byref(value), attribute, handle)
        told.append(value.value)
    major, minor, cores = told
    return Card(
        number=number,
        name=name.value.decode(errors="replace"),
        capability=(major, minor),
        memory_bytes=memory.value,
        multiprocessors=cores,
    )


def _asked(library: ctypes.CDLL, name: str, *arguments: object) -> None:
    status = int(getattr(library, name)(*arguments))
    if status:
        text = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(text))
        reason = (text.value or b"unknown to the driver").decode(errors="replace")
        raise DeviceError(
            f"the NVIDIA driver does not start ({name}: {reason}); look at nvidia-smi, or use "
            "device='cpu'"
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
