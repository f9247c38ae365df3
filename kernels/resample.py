"""From a volume to tokens: resample onto the model grid, normalise, cut into cubes.

This is the face: it checks every argument and chooses the implementation openly.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

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
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"'impl' must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    if impl == "cuda":
        if kernels is None:
            raise ValueError("'kernels' must name a folder of compiled kernels, as BUNDLE/kernels")
        from .launcher import resample_cuda

        return resample_cuda(
            volume,
            geometry,
            kernels=kernels,
            model_to_source=model_to_source,
            slope=slope,
            inter=inter,
            mean=mean,
            inv_std=inv_std,
            fill=fill,
            dtype=dtype,
            out=out,
        )
    resampler = Resampler(
        geometry, mean=mean, inv_std=inv_std, dtype=dtype, impl=impl, threads=threads
    )
    return resampler(
        volume, model_to_source=model_to_source, slope=slope, inter=inter, fill=fill, out=out
    )


class Resampler:
    """`resample_patchify` for many volumes: what is the same for all of them is checked once.

    On a GPU this is `launcher.CudaResampler`.

    Parameters
    ----------
    geometry, mean, inv_std, dtype, threads
        As in `resample_patchify`. The statistics must not change afterwards.
    impl : {"auto", "cpu", "reference"}

    Raises
    ------
    TypeError, ValueError
        The message names the argument.
    ImportError
        The native code is not built; the message holds the command.
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
    ) -> None:
        if impl not in ("auto", "cpu", "reference"):
            raise ValueError(f"'impl' must be one of auto, cpu, reference; got {impl!r}")
        check_threads(threads)
        self.geometry = geometry
        self._mean = checked_statistics("mean", mean, geometry.shape)
        self._inv_std = checked_statistics("inv_std", inv_std, geometry.shape)
        self._dtype = checked_type(dtype)
        self._impl = impl
        self._threads = threads
        if impl != "reference":
            native_code()  # that it is missing shows here, not at the first volume

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
        check_volume(volume, (3, 4))
        matrix = checked_matrix(model_to_source, volume, self.geometry)
        check_numbers(slope=slope, inter=inter, fill=fill)
        out = checked_output(out, (*volume.shape[:-3], *self.geometry.shape), self._dtype)
        batch, tokens = (volume, out) if volume.ndim == 4 else (volume[None], out[None])
        arguments = (matrix, slope, inter, self._mean, self._inv_std, fill)
        if self._impl == "reference":
            for one, of_one in zip(batch, tokens, strict=True):
                resample_reference(one, self.geometry, *arguments, of_one)
        else:
            resample_native(batch, self.geometry, *arguments, tokens, threads=self._threads)
        return out
