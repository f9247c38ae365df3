"""The compiled kernel for arrays of the host: upload, launch, download.

Whoever has volumes on the device, or wants tokens there, makes a `CudaResampler` instead.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .compiled import CompiledKernels
from .cuda_driver import Device
from .device_arguments import DeviceArray
from .geometry import Geometry
from .launcher import CudaResampler, Path


class HostResampler:
    """The tokens of one geometry on one device, for volumes of any type that the kernels read.

    Parameters
    ----------
    kernels, geometry, dtype, mean, inv_std, device
        As in `CudaResampler`.

    Raises
    ------
    ValueError
        The folder of kernels was changed, has another launch contract, or no code for the device.
    ImportError, RuntimeError
        cuda-python or the driver is missing.
    """

    def __init__(
        self,
        kernels: Path,
        geometry: Geometry,
        *,
        dtype: DTypeLike = np.float32,
        mean: NDArray[Any] | None = None,
        inv_std: NDArray[Any] | None = None,
        device: int = 0,
    ) -> None:
        self._kernels, self._geometry = kernels, geometry
        self._statistics = {"mean": mean, "inv_std": inv_std}
        self._dtype, self._number = dtype, device
        self._by_type: dict[str, CudaResampler] = {}
        compiled = CompiledKernels.open(kernels)
        self._device = Device.open(device)
        with ExitStack() as opened:  # undone in reverse if a step fails, and by `close`
            opened.callback(self._device.release)
            self.target = compiled.target(*self._device.capability)
            self._opened = opened.pop_all()

    def __call__(self, volume: NDArray[Any], out: NDArray[Any], **placed: Any) -> None:
        """Fill `out` with tokens; `placed` as in `CudaResampler.prepare`."""
        gpu, source = self._for(volume.dtype), compact(volume)
        with ExitStack() as borrowed:

            def lent(pointer: int) -> int:
                borrowed.callback(self._device.free, pointer)
                return pointer

            volumes = DeviceArray(
                pointer=lent(self._device.upload(source)),
                shape=source.shape,
                dtype=source.dtype,
                strides=source.strides,
            )
            tokens = DeviceArray(
                pointer=lent(self._device.allocate(out.nbytes)), shape=out.shape, dtype=out.dtype
            )
            gpu.prepare(volumes, tokens, **placed)()
            self._device.download(tokens.pointer, out)

    def _for(self, stored: np.dtype[Any]) -> CudaResampler:
        if stored.name not in self._by_type:
            gpu = CudaResampler(
                self._kernels,
                self._geometry,
                volume_dtype=stored,
                dtype=self._dtype,
                **self._statistics,
                device=self._number,
            )
            self._by_type[stored.name] = self._opened.enter_context(gpu)
        return self._by_type[stored.name]

    def close(self) -> None:
        """Free what lies on the device; may be called twice."""
        self._by_type.clear()
        self._opened.close()


def compact(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself if its memory is compact in some order of its axes, else a compact copy."""
    order = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
    if array.transpose(*order).flags.c_contiguous:
        return array
    return array.copy(order="K")
