"""Gaussian smoothing of a volume, fast enough to be done at every TR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_REACH = 2.5
"""Standard deviations at which the kernel ends."""


def smooth(volume: NDArray[Any], sigma: Sequence[float]) -> NDArray[np.float32]:
    """Gaussian smoothing axis by axis; the edge is repeated outwards.

    Parameters
    ----------
    volume : (X, Y, Z) real
    sigma : (3,) float
        Standard deviation along each axis in voxels; 0 leaves an axis as it is.

    Returns
    -------
    smoothed : (X, Y, Z) float32
        In the memory layout of `volume`, never the same array.
    """
    out = np.array(volume, np.float32)
    for axis, deviation in enumerate(sigma):
        if deviation > 0:
            out = _along(out, axis, deviation)
    return out


def _along(volume: NDArray[np.float32], axis: int, sigma: float) -> NDArray[np.float32]:
    reach = int(np.ceil(_REACH * sigma))
    kernel = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    kernel /= kernel[0] + 2 * kernel[1:].sum()
    weight = kernel.astype(np.float32)
    size = volume.shape[axis]
    wide = np.empty_like(
        volume, shape=[s + 2 * reach * (a == axis) for a, s in enumerate(volume.shape)]
    )
    source, padded = np.moveaxis(volume, axis, 0), np.moveaxis(wide, axis, 0)
    padded[reach : reach + size] = source
    padded[:reach], padded[reach + size :] = source[:1], source[-1:]
    out = weight[0] * volume
    moved, pair = np.moveaxis(out, axis, 0), np.empty_like(volume)
    both = np.moveaxis(pair, axis, 0)
    for step in range(1, reach + 1):
        np.add(padded[reach + step :][:size], padded[reach - step :][:size], out=both)
        both *= weight[step]
        moved += both
    return out
