"""The noise of the reference world: what a single trial adds to the signal.

Fixed before anything was trained. Shares of the noise variance of a median voxel:

- white, from voxel to voxel and trial to trial;
- diffuse: smooth in space, another pattern in every trial;
- modes: a dozen fixed smooth patterns per subject (pulse, breathing, arousal);
- ghost: activity of the tuned voxels that is not caused by the scene, inside the signal's own
  subspace.

All but the white part are also correlated from trial to trial (first-order autoregression).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .features import FEATURES, encode
from .scenes import draw_scenes
from .world import VOXEL_MM, WORLD_SEED, Subject

NOISE_CEILING_SNR = 0.5
"""Standard deviation of signal over that of noise in the median visual voxel, single trial."""
WHITE, DIFFUSE, MODES, GHOST = 0.45, 0.25, 0.25, 0.05
TRIAL_CORRELATION = 0.4
"""Correlation of the smooth parts between neighbouring trials."""
DIFFUSE_SIGMA_MM = 6.0
MODE_SIGMA_MM = 12.0
MODE_COUNT = 12
NOISE_PERCENT = 1.0
"""Standard deviation of the single-trial noise, percent signal change."""
GHOST_SCALE = float(np.sqrt(GHOST) / NOISE_CEILING_SNR)
"""Ghost features have this many times the standard deviation of the true ones."""


def feature_moments() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (67,) and covariance (67, 67) of the features over the scenes of the world."""
    features = encode(draw_scenes(40_000, np.random.default_rng([WORLD_SEED, 3]))).astype(
        np.float64
    )
    return features.mean(0), np.cov(features.T)


FEATURE_MEAN, FEATURE_COVARIANCE = feature_moments()
FEATURE_ROOT = np.linalg.cholesky(FEATURE_COVARIANCE + 1e-9 * np.eye(FEATURES))


@dataclass(frozen=True)
class Brain:
    """A subject with signal and noise in percent signal change.

    The tuning is scaled so that the median visual voxel has the stated noise-ceiling SNR.
    """

    subject: Subject

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """W in percent signal change for each unit of each feature, (V, 67)."""
        raw = self.subject.tuning.astype(np.float64)
        signal = np.sqrt(np.einsum("vi,ij,vj->v", raw, FEATURE_COVARIANCE, raw))
        return (raw * (NOISE_CEILING_SNR * NOISE_PERCENT / np.median(signal))).astype(np.float32)

    @cached_property
    def modes(self) -> NDArray[np.float32]:
        """(12, X, Y, Z) float32 fixed noise patterns, each of unit variance."""
        rng = np.random.default_rng([WORLD_SEED, 4, int(self.subject.name[1])])
        return np.stack(
            [smooth_noise(self.subject.shape, MODE_SIGMA_MM, rng) for _ in range(MODE_COUNT)]
        )

    def signal(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Noise-free response volumes, (B, X, Y, Z) float32, to features (B, 67)."""
        out = np.zeros((len(features), *self.subject.shape), np.float32)
        out[:, self.subject.mask] = features @ self.weights.T
        return out

    def correlated_noise(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One trial's smooth noise, (X, Y, Z) float32: diffuse, modes and ghost."""
        amplitudes = rng.standard_normal(MODE_COUNT).astype(np.float32)
        out = math.sqrt(DIFFUSE) * smooth_noise(self.subject.shape, DIFFUSE_SIGMA_MM, rng)
        out += math.sqrt(MODES / MODE_COUNT) * np.tensordot(amplitudes, self.modes, 1)
        out *= NOISE_PERCENT
        ghost = GHOST_SCALE * (FEATURE_ROOT @ rng.standard_normal(FEATURES))
        out[self.subject.mask] += self.weights @ ghost.astype(np.float32)
        return out

    def white_noise(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """One trial's white noise, (X, Y, Z) float32."""
        scale = np.float32(NOISE_PERCENT * np.sqrt(WHITE))
        return scale * rng.standard_normal(self.subject.shape, dtype=np.float32)


def smooth_noise(
    shape: tuple[int, ...], sigma_mm: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A Gaussian random field of unit variance on a grid of 1.8 mm voxels."""
    white = rng.standard_normal(shape, dtype=np.float32)
    smooth: Any = ndimage.gaussian_filter(white, sigma_mm / VOXEL_MM, mode="wrap", truncate=3.0)
    sigma = sigma_mm / VOXEL_MM
    # Variance left after smoothing white noise with a normalised Gaussian: (2 sqrt(pi) sigma)^-3.
    return smooth * np.float32((2 * np.sqrt(np.pi) * sigma) ** 1.5)
