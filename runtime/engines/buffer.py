"""Contiguous memory, described: pointer, shape, dtype, device and the stream that orders its use.

A buffer of a GPU goes to CuPy, PyTorch or ONNX Runtime without a copy, through DLPack or
`__cuda_array_interface__`; one of the host goes to NumPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import InputError
from . import dlpack


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Buffer:
    """Contiguous memory that belongs to `owner`."""

    pointer: int
    """Address of the first element."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: tuple[int, int] = (dlpack.CPU, 0)
    """DLPack's kind of device, and its number; (2, 0) is the first GPU."""
    stream: int = 0
    """Address of the CUDA stream on which it is written; 0 on the host."""
    owner: Any = field(default=None, repr=False)
    """Keeps the memory alive."""

    @classmethod
    def of_host(cls, array: NDArray[Any]) -> Buffer:
        """The memory of a contiguous array; InputError for any other."""
        if not array.flags.c_contiguous:
            raise InputError("a buffer needs an array that is contiguous in C order")
        return cls(pointer=array.ctypes.data, shape=array.shape, dtype=array.dtype, owner=array)

    @classmethod
    def from_dlpack(cls, source: Any, stream: int = 0) -> Buffer:
        """Borrow the memory of an array of any library; nothing is copied.

        Parameters
        ----------
        source : object
            Has `__dlpack__` and `__dlpack_device__`.
        stream : int
            Address of the stream on which it will be used; the producer makes it wait for what it
            has under way. 0 on the host.

        Raises
        ------
        InputError
            Memory that is not contiguous, or a type that is not known here.
        """
        kind, _ = source.__dlpack_device__()
        # the spec wants None for the host; a CUDA stream goes by its address
        on_gpu = int(kind) == dlpack.CUDA and stream
        capsule = source.__dlpack__(stream=stream) if on_gpu else source.__dlpack__()
        try:
            found = dlpack.borrow(capsule)
        except (TypeError, ValueError) as exc:
            raise InputError(f"this array cannot be borrowed: {exc}") from exc
        return cls(
            pointer=found.pointer,
            shape=found.shape,
            dtype=found.dtype,
            device=found.device,
            stream=stream,
            owner=(capsule, source),
        )

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def on_gpu(self) -> bool:
        """Whether it lies in a GPU's memory."""
        return self.device[0] == dlpack.CUDA

    def part(self, first: int, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> Buffer:
        """A part of it that begins `first` bytes in, seen as another shape and type.

        Raises
        ------
        InputError
            It would reach past the end.
        """
        part = replace(
            self,
            pointer=self.pointer + first,
            shape=shape,
            dtype=self.dtype if dtype is None else np.dtype(dtype),
            owner=self,
        )
        if first < 0 or first + part.nbytes > self.nbytes:
            raise InputError(
                f"{part.nbytes} bytes from {first} do not lie inside a buffer of {self.nbytes}"
            )
        return part

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """A capsule for any library. The consumer's stream must come after ours: synchronise with
        `Gpu.wait`, or hand over the same stream."""
        described = dlpack.Described(
            pointer=self.pointer, shape=self.shape, dtype=self.dtype, device=self.device
        )
        return dlpack.lend(described, self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if not self.on_gpu:
            raise AttributeError("this buffer lies in host memory")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": self.stream or None,
            "version": 3,
        }
