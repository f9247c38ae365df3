"""From a volume to tokens: resample onto the model grid, normalise, cut into cubes.

This is the face: it checks every argument and chooses the implementation openly.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .arguments import (
    check_numbers,
    check_threads,
    check_volume,
    checked_matrix,
    checked_output,
    checked_statistics,
    checked_type,
)
from .geometry import Geometry
from .native import native_code, resample_native
from .resample_reference import resample_reference

if TYPE_CHECKING:
    from .host_to_host import HostResampler

IMPLEMENTATIONS = ("auto", "cuda", "cpu", "reference")


def resample_patchify(
    volume: NDArray[Any],
    geometry: Geometry,
    *,
    model_to_source: NDArray[np.float64],
    slope: float = 1.0,
    inter: float = 0.0,
    mean: NDArray[Any] | None = None,
    inv_std: NDArray[Any] | None = None,
    fill: float = 0.0,
    dtype: DTypeLike = np.float32,
    impl: str = "auto",
    threads: int | None = None,
    kernels: str | PathLike[str] | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Tokens of one volume, or of a batch: `(trilinear(volume * slope + inter) - mean) * inv_std`.

    For many volumes with the same statistics make a `Resampler`, which checks them once.

    Parameters
    ----------
    volume : (X, Y, Z) or (B, X, Y, Z) int16, uint16, float16 or float32
        Stored values, in any memory layout; none is copied.
    geometry : Geometry
        Model grid, cubes and active list.
    model_to_source : (4, 4) float64
        Maps voxel centres of the model grid to voxel centres of the volume; not singular, except
        that an axis may be collapsed to one voxel by a resize.
    slope, inter : float
        Turn stored values into real ones.
    mean, inv_std : (N, C) float, optional
        Statistics in real units; inv_std is finite and at least 0, where 0 masks a voxel: its
        token is 0 whatever the volume holds there.
    fill : float
        Real value of points more than half a voxel outside the volume; nearer ones take the edge's
        value.
    dtype : float32, float16 or bfloat16
        Type of the tokens.
    impl : {"auto", "cuda", "cpu", "reference"}
        Implementation. "cpu" is the native code, and what "auto" means for an array of the host;
        "cuda" uploads it to the first GPU and downloads the tokens.
    threads : int, optional
        The native code uses no more than these, and fewer for little work; all cores if None.
    kernels : path, optional
        Folder of compiled kernels, such as BUNDLE/kernels; "cuda" needs one.
    out : (N, C) or (B, N, C) dtype, optional
        Array to fill.

    Returns
    -------
    tokens : (N, C) or (B, N, C) dtype

    Raises
    ------
    TypeError, ValueError
        The message names the argument.
    ImportError
        The native code is not built, or cuda-python is missing; the message holds the command.
    RuntimeError
        There is no NVIDIA driver, or a call of it failed.
    """
    # all of it before a GPU is looked for
    matrix = _checked(volume, geometry, model_to_source, slope, inter, fill)
    out = checked_output(out, (*volume.shape[:-3], *geometry.shape), checked_type(dtype), volume)
    with Resampler(
        geometry,
        mean=mean,
        inv_std=inv_std,
        dtype=dtype,
        impl=impl,
        threads=threads,
        kernels=kernels,
    ) as resampler:
        return resampler(
            volume, model_to_source=matrix, slope=slope, inter=inter, fill=fill, out=out
        )


def _checked(
    volume: NDArray[Any],
    geometry: Geometry,
    matrix: NDArray[np.float64],
    slope: float,
    inter: float,
    fill: float,
) -> NDArray[np.float64]:
    check_volume(volume, (3, 4))
    check_numbers(slope=slope, inter=inter, fill=fill)
    return checked_matrix(matrix, volume, geometry)


class Resampler:
    """`resample_patchify` for many volumes: what is the same for all of them is checked once, and
    on a GPU uploaded once.

    From device memory to device memory it is `launcher.CudaResampler`.

    Parameters
    ----------
    geometry, mean, inv_std, dtype, impl, threads, kernels
        As in `resample_patchify`. The statistics must not change afterwards.

    Raises
    ------
    TypeError, ValueError
        The message names the argument; kernels for another launch contract, or with no code for the
        GPU, are one of them.
    ImportError
        The native code is not built, or cuda-python is missing; the message holds the command.
    RuntimeError
        There is no NVIDIA driver, or a call of it failed.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        mean: NDArray[Any] | None = None,
        inv_std: NDArray[Any] | None = None,
        dtype: DTypeLike = np.float32,
        impl: str = "auto",
        threads: int | None = None,
        kernels: str | PathLike[str] | None = None,
    ) -> None:
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"'impl' must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
        check_threads(threads)
        self.geometry = geometry
        self.impl = "cpu" if impl == "auto" else impl
        """What makes the tokens: cuda, cpu or reference."""
        self._mean = checked_statistics("mean", mean, geometry.shape)
        self._inv_std = checked_statistics("inv_std", inv_std, geometry.shape)
        self._dtype = checked_type(dtype)
        self._threads = threads
        # what is missing shows here, not at the first volume
        self._gpu = self._on_gpu(kernels) if self.impl == "cuda" else None
        if self.impl == "cpu":
            native_code()

    def _on_gpu(self, kernels: str | PathLike[str] | None) -> HostResampler:
        if kernels is None:
            raise ValueError("'kernels' must name a folder of compiled kernels, as BUNDLE/kernels")
        from .host_to_host import HostResampler

        return HostResampler(
            kernels, self.geometry, dtype=self._dtype, mean=self._mean, inv_std=self._inv_std
        )

    def __call__(
        self,
        volume: NDArray[Any],
        *,
        model_to_source: NDArray[np.float64],
        slope: float = 1.0,
        inter: float = 0.0,
        fill: float = 0.0,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Tokens of one volume or of a batch; see `resample_patchify`."""
        matrix = _checked(volume, self.geometry, model_to_source, slope, inter, fill)
        shape = (*volume.shape[:-3], *self.geometry.shape)
        out = checked_output(out, shape, self._dtype, volume)
        if self._gpu:
            self._gpu(volume, out, model_to_source=matrix, slope=slope, inter=inter, fill=fill)
            return out
        batch, tokens = (volume, out) if volume.ndim == 4 else (volume[None], out[None])
        arguments = (matrix, slope, inter, self._mean, self._inv_std, fill)
        if self.impl == "reference":
            for one, of_one in zip(batch, tokens, strict=True):
                resample_reference(one, self.geometry, *arguments, of_one)
        else:
            resample_native(batch, self.geometry, *arguments, tokens, threads=self._threads)
        return out

    def close(self) -> None:
        """Free what lies on a GPU; nothing else needs it. May be called twice."""
        if self._gpu:
            self._gpu.close()

    def __enter__(self) -> Resampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
