"""The decoder that knows the simulator: the ceiling that every score stands beside.

Best linear unbiased estimate of the scene's features from tuning and noise covariance (generalised
least squares), then the nearest attributes. It works on averages over blocks of three voxels,
within which the smooth fields hardly change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve

from .features import nearest_scenes
from .noise import (
    DIFFUSE,
    DIFFUSE_SIGMA_MM,
    FEATURE_COVARIANCE,
    GHOST_SCALE,
    MODE_COUNT,
    MODES,
    NOISE_PERCENT,
    WHITE,
    Brain,
)
from .scenes import Scenes
from .world import VOXEL_MM

BLOCK = 3


class Oracle:
    """Decoder of one subject's native volumes."""

    def __init__(self, brain: Brain) -> None:
        mask = brain.subject.mask
        where = np.argwhere(mask)
        _, block, count = np.unique(where // BLOCK, axis=0, return_inverse=True, return_counts=True)
        block = block.ravel()
        pool = sparse.csr_matrix((1 / count[block], (block, np.arange(len(where)))))
        centre = pool @ where * VOXEL_MM
        weights = pool @ brain.weights.astype(np.float64)
        modes = pool @ brain.modes[:, mask].T.astype(np.float64)
        distance2 = ((centre[:, None] - centre[None]) ** 2).sum(2)
        covariance = DIFFUSE * np.exp(-distance2 / (4 * DIFFUSE_SIGMA_MM**2))
        covariance += MODES / MODE_COUNT * modes @ modes.T + np.diag(WHITE / count)
        covariance *= NOISE_PERCENT**2
        covariance += GHOST_SCALE**2 * weights @ FEATURE_COVARIANCE @ weights.T
        solved = cho_solve(cho_factor(covariance), weights)
        self._estimator = np.linalg.solve(weights.T @ solved, solved.T)  # (67, blocks)
        self.error = np.linalg.inv(weights.T @ solved)
        self._mask, self._pool = mask, pool

    def features(self, volumes: NDArray[np.float32]) -> NDArray[np.float64]:
        """Estimated features (B, 67) of beta volumes (B, X, Y, Z)."""
        return (self._estimator @ (self._pool @ volumes[:, self._mask].T.astype(np.float64))).T

    def decode(self, volumes: NDArray[np.float32]) -> Scenes:
        """The scenes that the oracle reads from beta volumes (B, X, Y, Z)."""
        return nearest_scenes(self.features(volumes))
