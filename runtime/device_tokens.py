"""The tokens of volumes, made by the resample kernel where they are read on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.arguments import VOLUME_TYPES
from ..kernels.device_arguments import DeviceArray
from ..kernels.host_to_host import compact
from ..kernels.launcher import CudaResampler
from .engines.buffer import Buffer
from .engines.gpu import Gpu
from .errors import DeviceError
from .preprocess import Preprocessor
from .volume import Volume

_PREPARED = 16
"""Launches that are kept: volumes of a run differ only where motion is in their affine."""


class DeviceTokens:
    """Launches of the resample kernel for one encoder's tokens.

    Parameters
    ----------
    preprocessor : Preprocessor
        With compiled kernels.
    gpu : Gpu
    """

    def __init__(self, preprocessor: Preprocessor, gpu: Gpu) -> None:
        self._preprocessor, self._gpu = preprocessor, gpu
        self._resamplers: dict[str, CudaResampler] = {}
        self._launches: dict[tuple[Any, ...], Callable[[Any], None]] = {}
        self._opened = ExitStack()

    def launch_of(
        self, volume: Volume, data: NDArray[Any], room: Buffer, tokens: Buffer
    ) -> Callable[[Any], None]:
        """What makes the tokens on a stream, given by its address.

        Parameters
        ----------
        volume : Volume
        data : (X, Y, Z)
            Its `compact` data.
        room : Buffer
            Where these lie on the device by then, as `flat` has them.
        tokens : Buffer
            (1, N, C), where they are to lie.

        Raises
        ------
        InputError
            As `Preprocessor.tokens`, but for what only the numbers tell.
        DeviceError
            The kernels do not load.
        """
        place = volume.affine.tobytes(), volume.slope, volume.inter
        key = (room.pointer, tokens.pointer, data.dtype.name, data.shape, data.strides, *place)
        if key not in self._launches:
            if len(self._launches) >= _PREPARED:
                self._launches.clear()
            self._launches[key] = self._prepared(volume, data, room, tokens)
        return self._launches[key]

    def _prepared(
        self, volume: Volume, data: NDArray[Any], room: Buffer, tokens: Buffer
    ) -> Callable[[Any], None]:
        slope, inter = self._preprocessor.scaling(volume)
        return self._resampler(data.dtype, tokens.dtype).prepare(
            DeviceArray(
                pointer=room.pointer, shape=data.shape, dtype=data.dtype, strides=data.strides
            ),
            DeviceArray(pointer=tokens.pointer, shape=tokens.shape[1:], dtype=tokens.dtype),
            model_to_source=self._preprocessor.model_to_source(volume),
            slope=slope,
            inter=inter,
        )

    def warm(self, dtype: np.dtype[Any]) -> None:
        """Load the kernels for volumes of every type, and tokens of one."""
        for stored in VOLUME_TYPES:
            self._resampler(np.dtype(stored), dtype)

    def _resampler(self, stored: np.dtype[Any], dtype: np.dtype[Any]) -> CudaResampler:
        if stored.name not in self._resamplers:
            kernels = self._preprocessor.kernels
            assert kernels is not None, "the preprocessor has compiled kernels"
            try:
                made = CudaResampler(
                    kernels,
                    self._preprocessor.geometry,
                    volume_dtype=stored,
                    dtype=dtype,
                    device=self._gpu.number,
                    **self._preprocessor.statistics,
                )
            except (RuntimeError, ValueError) as exc:
                raise DeviceError(str(exc)) from exc
            self._resamplers[stored.name] = self._opened.enter_context(made)
        return self._resamplers[stored.name]

    def close(self) -> None:
        """Unload the kernels; may be called twice."""
        self._launches.clear()
        self._resamplers.clear()
        self._opened.close()


def flat(volume: Volume) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """A volume's data, compact, and its bytes as they lie in memory.

    Returns
    -------
    data : (X, Y, Z)
        A copy only where the volume is not compact.
    raw : (data.nbytes,) uint8
    """
    data = compact(volume.data)
    order = np.argsort([-stride for stride in data.strides], kind="stable")
    return data, data.transpose(*order).reshape(-1).view(np.uint8)
