"""The compiled kernel on a GPU: cuda-python and the folder that a bundle holds, nothing else.

    with CudaResampler("BUNDLE/kernels", geometry, volume_dtype="int16", mean=m, inv_std=s) as gpu:
        launch = gpu.prepare(volumes, tokens, model_to_source=matrix)
        launch(stream)

Preparing checks everything and packs the arguments. A launch neither allocates nor waits, so it may
stand in a CUDA graph; volumes and tokens stay at their addresses. For arrays of the host there is
`host_to_host.py`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .arguments import check_volume, checked_statistics, checked_type
from .compiled import CompiledKernels, Image
from .cuda_driver import Device, call
from .device_arguments import DeviceArray, check_device_arrays, packed, plan_launch
from .geometry import Geometry
from .launch_plan import LaunchPlan
from .variants import Variant

Path = str | os.PathLike[str]


class Launch:
    """One launch, ready: calling it only hands the packed arguments to the driver."""

    def __init__(
        self,
        resampler: CudaResampler,
        function: Any,
        device: Device,
        image: Image,
        plan: LaunchPlan,
        pointers: Sequence[int],
    ) -> None:
        self._resampler = resampler
        self._function = function
        self._device = device
        self._threads = 32 * image.warps
        self._shared_bytes = image.shared_bytes
        self._programs = plan.programs
        self._values, self._table = packed(plan, pointers)
        self._address = ctypes.addressof(self._table)

    def __call__(self, stream: Any = 0) -> None:
        """Launch on a stream, given as `CUstream` or as its address; 0 is the default stream."""
        if self._resampler.closed:
            raise RuntimeError(
                "this launch belongs to a CudaResampler that was closed; make another"
            )
        if 0 in self._programs:
            return
        with self._device.current():
            call(
                "cuLaunchKernel",
                self._function,
                *self._programs,
                self._threads,
                1,
                1,
                self._shared_bytes,
                stream,
                self._address,
                0,
            )


class CudaResampler:
    """The tokens of one geometry on one device, from device memory to device memory.

    Parameters
    ----------
    kernels : path
        Folder of compiled kernels, such as BUNDLE/kernels.
    geometry : Geometry
    volume_dtype : int16, uint16, float16 or float32
        Stored type of the volumes.
    dtype : float32, float16 or bfloat16
        Type of the tokens.
    mean, inv_std : (N, C) float, optional
        Statistics on the host, as in `resample_patchify`; they are uploaded once.
    device : int

    Raises
    ------
    TypeError, ValueError
        The message names the argument; a folder of kernels that was changed, that has another
        launch contract, or no code for the device is one of them.
    ImportError, RuntimeError
        cuda-python or the driver is missing, or a call of the driver failed.
    """

    def __init__(
        self,
        kernels: Path,
        geometry: Geometry,
        *,
        volume_dtype: DTypeLike,
        dtype: DTypeLike = np.float32,
        mean: NDArray[Any] | None = None,
        inv_std: NDArray[Any] | None = None,
        device: int = 0,
    ) -> None:
        self.geometry = geometry
        self.volume_dtype, self.dtype = np.dtype(volume_dtype), checked_type(dtype)
        check_volume(np.empty((1, 1, 1), self.volume_dtype), (3,))
        statistics = [
            checked_statistics(name, values, geometry.shape)
            for name, values in (("mean", mean), ("inv_std", inv_std))
        ]
        compiled = CompiledKernels.open(kernels)
        variant = Variant(self.volume_dtype.name, self.dtype.name)
        self._device = Device.open(device)
        with ExitStack() as opened:  # undone in reverse if a step fails, and by `close`
            opened.callback(self._device.release)
            self._image = compiled.image(variant, compiled.target(*self._device.capability))
            self._function = self._loaded(opened)
            corners = self._uploaded(np.ascontiguousarray(geometry.corners.T), opened)
            uploaded = [0 if v is None else self._uploaded(v, opened) for v in statistics]
            self._fixed = corners, *uploaded
            self._opened = opened.pop_all()
        self.closed = False

    @property
    def target(self) -> str:
        """The code that was chosen for the device: sm_90 and the like, or ptx."""
        return self._image.target

    def _loaded(self, opened: ExitStack) -> Any:
        with self._device.current():
            module = call("cuModuleLoadData", self._image.code + b"\0")
            opened.callback(self._unload, module)
            return call("cuModuleGetFunction", module, self._image.symbol.encode())

    def _unload(self, module: Any) -> None:
        with self._device.current():
            call("cuModuleUnload", module)

    def _uploaded(self, array: NDArray[Any], opened: ExitStack) -> int:
        pointer = self._device.upload(array)
        opened.callback(self._device.free, pointer)
        return pointer

    def prepare(
        self,
        volumes: DeviceArray,
        tokens: DeviceArray,
        *,
        model_to_source: NDArray[np.float64],
        slope: float = 1.0,
        inter: float = 0.0,
        fill: float = 0.0,
    ) -> Launch:
        """Check and pack one launch.

        Parameters
        ----------
        volumes : (X, Y, Z) or (B, X, Y, Z) volume_dtype
            In any memory layout whose strides are whole elements.
        tokens : (N, C) or (B, N, C) dtype
            Contiguous.
        model_to_source, slope, inter, fill
            As in `resample_patchify`.

        Raises
        ------
        TypeError, ValueError
            The message names the argument.
        """
        check_device_arrays(volumes, tokens, self.geometry, self.volume_dtype, self.dtype)
        _, mean, inv_std = self._fixed
        plan = plan_launch(
            self.geometry,
            volumes,
            model_to_source,
            slope=slope,
            inter=inter,
            fill=fill,
            mean=mean != 0,
            inv_std=inv_std != 0,
        )
        pointers = (volumes.pointer + plan.skipped_bytes, *self._fixed, tokens.pointer)
        return Launch(self, self._function, self._device, self._image, plan, pointers)

    def close(self) -> None:
        """Free what was uploaded and loaded; its launches are refused from then on, and calling it
        twice does nothing."""
        self.closed = True
        self._opened.close()

    def __enter__(self) -> CudaResampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
