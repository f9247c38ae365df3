"""One GPU with one stream: memory at fixed addresses, copies that do not wait.

Everything of a decoder that runs on the GPU shares one `Gpu`: what is enqueued later sees what was
written before, so nothing has to wait until the answer is copied out.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...kernels.cuda_driver import Device, call, checked, driver
from ..errors import DeviceError, MissingExtraError
from . import dlpack
from .buffer import Buffer
from .driver import Card, need_gpu

_PIECE = 1 << 20
"""Bytes that `send` copies at once."""


class Gpu:
    """A GPU's primary context, which all libraries share, and one stream. Use `Gpu.open`.

    Calls that fail raise DeviceError with the name of the call and the driver's reason.
    """

    def __init__(
        self, card: Card, device: Device, make_stream: Callable[[], Any] | None = None
    ) -> None:
        self.card = card
        self.number = card.number
        self.device = device
        with ExitStack() as opened:  # undone in reverse if a step fails, and by `close`
            opened.callback(device.release)
            with self.current():
                stream = (make_stream or _first_stream)()
            opened.callback(self._in_context, "cuStreamDestroy", stream)
            self._handle = stream
            self._opened = opened.pop_all()
        self.stream = int(stream)
        """Address of the stream, as other libraries take it."""

    @classmethod
    def open(
        cls,
        number: int = 0,
        device: str = "cuda",
        make_stream: Callable[[], Any] | None = None,
    ) -> Gpu:
        """Open a GPU, the driver first.

        Parameters
        ----------
        number : int
        device : str
            What was asked for, for messages.
        make_stream : callable, optional
            Makes the stream in the current context, for example one of another priority or on a
            part of the GPU; by default one of the highest priority. It is destroyed by `close`.

        Raises
        ------
        DeviceError
            No driver, an old one, or no such GPU.
        MissingExtraError
            cuda-python is not installed.
        """
        card = need_gpu(device, number)
        try:
            return cls(card, Device.open(number), make_stream)
        except ImportError as exc:
            raise MissingExtraError(
                f"device {device!r} needs cuda-python; run pip install 'scanside[gpu]'"
            ) from exc
        except RuntimeError as exc:
            raise DeviceError(str(exc)) from exc

    @contextmanager
    def current(self) -> Generator[None]:
        """Make the context current in this thread; the driver's errors come out as DeviceError."""
        try:
            with self.device.current():
                yield
        except RuntimeError as exc:
            raise exc if isinstance(exc, DeviceError) else DeviceError(str(exc)) from exc

    def _in_context(self, name: str, *arguments: Any) -> None:
        with self.current():
            call(name, *arguments)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        """Zeroed device memory that stays where it is until `close`."""
        dtype = np.dtype(dtype)
        size = max(math.prod(shape) * dtype.itemsize, 1)
        with self.current():
            try:
                pointer = int(call("cuMemAlloc", size))
            except RuntimeError as exc:
                raise self._no_room(size, exc) from exc
            self._opened.callback(self._in_context, "cuMemFree", pointer)
            call("cuMemsetD8Async", pointer, 0, size, self._handle)
        return Buffer(
            pointer=pointer,
            shape=shape,
            dtype=dtype,
            device=(dlpack.CUDA, self.number),
            stream=self.stream,
            owner=self,
        )

    def _no_room(self, size: int, exc: RuntimeError) -> DeviceError:
        return DeviceError(
            f"{self.card.name} has no room for {size / 2**20:.1f} MiB more ({exc}); close what "
            "else uses its memory, which nvidia-smi lists, or write stages to the CPU into the "
            "device"
        )

    @property
    def free_bytes(self) -> int:
        """Device memory that nobody uses now."""
        with self.current():
            free, _ = call("cuMemGetInfo")
        return int(free)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Page-locked host memory, from and to which a copy does not wait; until `close`."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        with self.current():
            pointer = int(call("cuMemHostAlloc", max(size, 1), 0))
        self._opened.callback(self._in_context, "cuMemFreeHost", pointer)
        memory = (ctypes.c_uint8 * size).from_address(pointer)
        array: NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        array[...] = 0
        return array

    def upload(self, array: NDArray[Any], to: Buffer) -> None:
        """Enqueue a copy from the host; from pinned memory it does not wait.

        The array is converted to the buffer's type and shape.
        """
        source = np.ascontiguousarray(array, to.dtype).reshape(to.shape)
        with self.current():
            call("cuMemcpyHtoDAsync", to.pointer, source.ctypes.data, to.nbytes, self._handle)

    def send(self, raw: NDArray[np.uint8], through: NDArray[np.uint8], to: Buffer) -> None:
        """Copy bytes of ordinary memory into pinned memory and enqueue their copy to the device, in
        pieces: one travels while the next is copied.

        Parameters
        ----------
        raw : (n,) uint8
        through : (n,) uint8 or more
            Pinned; its old content has to be on the device by now.
        to : Buffer
            Of n bytes or more.
        """
        for first in range(0, raw.nbytes, _PIECE):
            piece = raw[first : first + _PIECE]
            pinned = through[first : first + piece.nbytes]
            pinned[:] = piece
            self.upload(pinned, to.part(first, piece.shape, np.uint8))

    def download(self, source: Buffer, to: NDArray[Any]) -> None:
        """Enqueue a copy to a contiguous array of the same size; into pinned memory it does not
        wait."""
        assert to.flags.c_contiguous, "the caller's own array"
        assert to.nbytes == source.nbytes, "the caller's own array"
        with self.current():
            call("cuMemcpyDtoHAsync", to.ctypes.data, source.pointer, to.nbytes, self._handle)

    def copy(self, source: Buffer, to: Buffer) -> None:
        """Enqueue a copy inside the device, of as many bytes as `to` has."""
        with self.current():
            call("cuMemcpyDtoDAsync", to.pointer, source.pointer, to.nbytes, self._handle)

    def clear(self, buffer: Buffer) -> None:
        """Enqueue zeros."""
        with self.current():
            call("cuMemsetD8Async", buffer.pointer, 0, buffer.nbytes, self._handle)

    def clock(self) -> Any:
        """An event that notes when the stream comes to it; until `close`."""
        with self.current():
            event = call("cuEventCreate", 0)
        self._opened.callback(self._in_context, "cuEventDestroy", event)
        return event

    def note(self, event: Any) -> None:
        """Enqueue an event of `clock`."""
        with self.current():
            call("cuEventRecord", event, self._handle)

    def is_past(self, event: Any) -> bool:
        """Whether everything is done that was enqueued before an event of `clock`."""
        with self.current():
            (status,) = driver().cuEventQuery(event)
            if status == driver().CUresult.CUDA_ERROR_NOT_READY:
                return False
            checked("cuEventQuery", (status,))
        return True

    def seconds_between(self, first: Any, last: Any) -> float:
        """Time on the GPU between two events, once both are over."""
        with self.current():
            return float(call("cuEventElapsedTime", first, last)) / 1e3

    def wait(self) -> None:
        """Until everything that was enqueued is done."""
        with self.current():
            call("cuStreamSynchronize", self._handle)

    def close(self) -> None:
        """Free all memory and the stream, once engines on it are closed; may be called twice."""
        self._opened.close()


def _first_stream() -> Any:
    """A stream whose kernels go before those of others that wait: a picture's before those of
    llama.cpp's tokens. Beside each other a step of the U-Net then takes 6.3 ms instead of 10.3, and
    a token 6.3 instead of 4.6, which in all is the most work in a time (`benchmarks/gpu_beside.py`,
    H200). Non-blocking: the legacy default stream holds nothing up."""
    _, highest = call("cuCtxGetStreamPriorityRange")
    flags = int(driver().CUstream_flags.CU_STREAM_NON_BLOCKING.value)
    return call("cuStreamCreateWithPriority", flags, highest)
