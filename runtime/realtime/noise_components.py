"""Signals that the brain shares beside the task, from voxels outside the model's mask.

Their first principal components (Behzadi et al. 2007, doi:10.1016/j.neuroimage.2007.04.042), found
once over the first volumes and kept: a component that changed with every volume would change all
earlier rows of the design.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...kernels import Geometry

BRIGHT = 0.25
"""A voxel brighter than this share of the brightest hundredth lies in the head."""
MOST_VOXELS = 4000


class NoiseComponents:
    """Up to five components, learnt from the first volumes of a run.

    Parameters
    ----------
    count : int
        Components.

    Attributes
    ----------
    learnt : bool
        Scores are known.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.learnt = False
        self._seen: dict[int, NDArray[np.float32]] = {}
        self._mean = np.zeros(0)
        self._maps = np.zeros((count, 0))

    def see(self, frame: int, values: NDArray[np.float32]) -> None:
        """Remember the noise voxels (P,) of a volume to learn from."""
        if not self.learnt:
            self._seen[frame] = np.array(values, np.float32)

    def forget(self, frame: int) -> None:
        """Do not learn from a volume, such as one that a jerk has spoilt."""
        self._seen.pop(frame, None)

    def learn(self) -> dict[int, NDArray[np.float64]]:
        """Find the components, from volumes freed of a constant and a trend.

        Returns
        -------
        scores : dict
            Of the volumes seen, (count,) each; empty while these are too few.
        """
        if len(self._seen) < 2 * self.count + 2:
            return {}
        frames = sorted(self._seen)
        series = np.stack([self._seen[frame] for frame in frames]).astype(np.float64)  # (T, P)
        self._mean = series.mean(axis=0)
        trend = np.vander(np.array(frames, float) - np.mean(frames), 2)
        series = series - trend @ np.linalg.lstsq(trend, series, rcond=None)[0]
        spread = series.std(axis=0)
        series /= np.where(spread > 0, spread, np.inf)
        energy, scores = np.linalg.eigh(series @ series.T)
        largest = scores[:, ::-1][:, : self.count]  # (T, count), unit length
        scale = np.sqrt(np.maximum(energy[::-1][: self.count], np.finfo(float).tiny))
        maps = (series.T @ largest / scale).T  # (count, P), unit length
        self._maps = maps / np.where(spread > 0, spread, np.inf) / np.sqrt(series.shape[1])
        self.learnt = True
        seen, self._seen = self._seen, {}
        return {frame: self.scores(values) for frame, values in seen.items()}

    def scores(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """The (count,) components of a volume's noise voxels (P,)."""
        return self._maps @ (values - self._mean)


def noise_points(
    reference: NDArray[np.float32],
    affine: NDArray[np.float64],
    model_to_source: NDArray[np.float64],
    geometry: Geometry,
    inv_std: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Points in the head that no token of the model reads.

    Parameters
    ----------
    reference : (X, Y, Z) float32
        The run's reference.
    affine : (4, 4) float64
        Its voxels to world.
    model_to_source : (4, 4) float64
        Model voxels to its voxels.
    geometry : Geometry
    inv_std : (N, C) float32, optional
        0 masks an element of a token.

    Returns
    -------
    points : (P, 3) float64
        World millimetres, at most `MOST_VOXELS` of them, spread evenly.
    """
    read = geometry.in_grid if inv_std is None else geometry.in_grid & (inv_std > 0)
    taken = np.zeros(geometry.grid, bool)
    taken[tuple(geometry.voxels[read].T)] = True
    bright = reference > BRIGHT * np.percentile(reference, 99)
    voxels = np.argwhere(bright)
    model = np.linalg.inv(model_to_source)
    at = np.rint(voxels @ model[:3, :3].T + model[:3, 3]).astype(np.int64)
    inside: NDArray[np.bool_] = np.all((at >= 0) & (at < geometry.grid), axis=1)
    free: NDArray[np.bool_] = np.logical_not(inside)
    free[inside] = ~taken[tuple(at[inside].T)]
    voxels = voxels[free]
    count = min(MOST_VOXELS, len(voxels))
    chosen = voxels[np.linspace(0, len(voxels) - 1, count).astype(np.int64)] if count else voxels
    return chosen @ affine[:3, :3].T + affine[:3, 3]
