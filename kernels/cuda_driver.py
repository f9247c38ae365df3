"""The CUDA driver through cuda-python: imported when it is used, every return code checked.

Neither torch nor the CUDA runtime library is needed, only the driver that comes with the card.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@functools.cache
def driver() -> Any:
    """The module `cuda.bindings.driver`, initialised.

    Raises
    ------
    ImportError
        cuda-python is not installed; the message holds the command.
    RuntimeError
        There is no NVIDIA driver, or it finds no device.
    """
    try:
        module: Any = importlib.import_module("cuda.bindings.driver")
    except ImportError as exc:
        raise ImportError(
            "impl='cuda' needs cuda-python; run: pip install 'scanside[gpu]'"
        ) from exc
    try:
        status = module.cuInit(0)
    except RuntimeError as exc:  # what cuda-python raises where libcuda is missing
        raise RuntimeError(
            f"impl='cuda' needs an NVIDIA driver, and none could be loaded ({_first_line(exc)}); "
            "install the driver of your card, or use impl='cpu'"
        ) from exc
    checked("cuInit", status, module)
    return module


def checked(name: str, result: tuple[Any, ...], module: Any = None) -> Any:
    """What a call of the driver gave besides its status.

    Raises
    ------
    RuntimeError
        The status is not success; the message names call and status.
    """
    module = module or driver()
    status, *values = result
    if status != module.CUresult.CUDA_SUCCESS:
        found, text = module.cuGetErrorString(status)
        known = found == module.CUresult.CUDA_SUCCESS
        reason = text.decode() if known else "unknown to the driver"
        raise RuntimeError(f"{name} failed: {getattr(status, 'name', status)} ({reason})")
    return values[0] if len(values) == 1 else tuple(values)


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver by its name and check its status."""
    return checked(name, getattr(driver(), name)(*arguments))


@dataclass(frozen=True, slots=True)
class Device:
    """A device and its primary context, which other libraries in the process share."""

    number: int
    context: Any
    capability: tuple[int, int]

    @classmethod
    def open(cls, number: int = 0) -> Device:
        """Open a device.

        Raises
        ------
        ImportError, RuntimeError
            cuda-python or the driver is missing.
        ValueError
            'device' is not there.
        """
        count = call("cuDeviceGetCount")
        if not 0 <= number < count:
            raise ValueError(f"'device' must be 0 to {count - 1}; got {number}")
        handle = call("cuDeviceGet", number)
        attributes = driver().CUdevice_attribute
        major, minor = (
            call("cuDeviceGetAttribute", attribute, handle)
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        return cls(number, call("cuDevicePrimaryCtxRetain", handle), (major, minor))

    @contextmanager
    def current(self) -> Generator[None]:
        """Make the context current in this thread for a while."""
        call("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent")

    def allocate(self, size_bytes: int) -> int:
        """Address of new memory; at least one byte, so that it is never 0."""
        with self.current():
            return int(call("cuMemAlloc", max(size_bytes, 1)))

    def upload(self, array: NDArray[Any]) -> int:
        """Address of a copy of an array whose memory is compact in some order of its axes."""
        address = self.allocate(array.nbytes)
        try:
            if array.nbytes:
                with self.current():
                    call("cuMemcpyHtoD", address, array.ctypes.data, array.nbytes)
        except RuntimeError:
            self.free(address)
            raise
        return address

    def download(self, pointer: int, array: NDArray[Any]) -> None:
        """Fill a contiguous array from the device, after all that was launched before."""
        with self.current():
            call("cuCtxSynchronize")
            if array.nbytes:
                call("cuMemcpyDtoH", array.ctypes.data, pointer, array.nbytes)

    def free(self, pointer: int) -> None:
        """Give memory back."""
        with self.current():
            call("cuMemFree", pointer)

    def release(self) -> None:
        """Let the primary context go, once everything made in it is freed."""
        call("cuDevicePrimaryCtxRelease", call("cuDeviceGet", self.number))


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().splitlines()[0].rstrip(".")
