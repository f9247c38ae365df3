"""Signals that the brain shares beside the task, from voxels outside the model's mask.

Their first principal components (Behzadi et al. 2007, doi:10.1016/j.neuroimage.2007.04.042), found
once over the first volumes and kept: a component that changed with every volume would change all
earlier rows of the design.

Two components of nearly the same energy are no two directions but a plane, and which directions of
it come out is decided by the last digit of the data. So components are taken up to a fall of their
energies, and enter a fit in groups that end at one.
"""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from ...kernels import Geometry
from .basis import falls

BRIGHT = 0.25
"""A voxel brighter than this share of the brightest hundredth lies in the head."""
MOST_VOXELS = 4000
NEAR = 0.999
"""A head voxel is read if a voxel of the model lies nearer to it than this along every axis, in
edges of its own. Not 1: on grids that fit together many lie at exactly 1."""
_LEAST_SPREAD = 1e-5
"""Of a voxel, in its mean; below it is what float32 rounds away."""


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
    groups : list of range
        Components that are told apart only together, in order of their energy. Those in none are
        0.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.learnt = False
        self.groups: list[range] = []
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
        alive = spread > _LEAST_SPREAD * np.abs(self._mean)
        series = series[:, alive] / spread[alive]
        energy, scores = np.linalg.eigh(series @ series.T)
        energy, scores = energy[::-1], scores[:, ::-1]
        ends = falls(energy, self.count)
        self.groups = [range(*group) for group in pairwise([0, *ends])]
        kept = max(ends, default=0)
        self._maps = np.zeros((self.count, alive.size))
        maps = (series.T @ scores[:, :kept] / np.sqrt(energy[:kept])).T  # (kept, P), unit length
        self._maps[:kept, alive] = maps / spread[alive] / np.sqrt(series.shape[1])
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
    free = reference > BRIGHT * np.percentile(reference, 99)
    free[_near(geometry.voxels[read], model_to_source, free.shape)] = False
    # every voxel has a rank of its own: one more or less of them changes no other's place
    rank = np.random.default_rng(0).random(free.shape)
    voxels = np.argwhere(free)
    first = np.sort(np.argsort(rank[free], kind="stable")[:MOST_VOXELS])
    return voxels[first] @ affine[:3, :3].T + affine[:3, 3]


def _near(
    points: NDArray[np.int64], model_to_source: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Which voxels of a volume enter the values at the points (R, 3) of the model grid."""
    at = points @ model_to_source[:3, :3].T + model_to_source[:3, 3]
    limit = np.array(shape)
    near = np.zeros(limit + 2, bool)  # a border for what lies outside
    strides = np.array(near.strides)
    ends = [
        (np.clip(end, -1, limit).astype(np.int64) + 1) * strides
        for end in (np.ceil(at - NEAR), np.floor(at + NEAR))
    ]
    for x, y, z in product(ends, repeat=3):
        near.reshape(-1)[x[:, 0] + y[:, 1] + z[:, 2]] = True
    return near[1:-1, 1:-1, 1:-1]
