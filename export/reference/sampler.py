"""Training trials without volumes: the same distribution as `trials.Session`, drawn straight as
pattern coefficients of cubes.

Everything between a scene and a normalised cube is linear, and brain activity is smooth. So each
cube is described by its coefficients on the smoothest cosine patterns, all linear maps are worked
out once, and a batch costs milliseconds. A patch embedding trained on coefficients becomes an
ordinary one by multiplication with the patterns, exactly. A test holds both roads together.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from .features import FEATURES, PER_PLACE, encode
from .noise import (
    DIFFUSE,
    DIFFUSE_SIGMA_MM,
    FEATURE_COVARIANCE,
    FEATURE_MEAN,
    FEATURE_ROOT,
    GHOST_SCALE,
    MODE_COUNT,
    MODES,
    NOISE_PERCENT,
    WHITE,
    Brain,
    smooth_noise,
)
from .scenes import PLACES, Scenes
from .training import Progress
from .trials import CUBE, active_cubes, to_cubes, to_grid, union_mask
from .world import GRID, SEEN, WORLD_SEED, Subject

PATTERNS = 128
"""Cosine patterns of a cube of 14; their finest wavelength is 8 mm, well below a cluster of 20 mm.
"""
POOL = 6000
"""Diffuse noise fields held in memory; a trial's is a random unit combination of three. Many, since
an encoder learns to be blind to the space that few of them span, and reads new noise worse.
"""
MIRRORED = ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
"""Axes along which a noise field is mirrored, all eight ways."""
SINGLE_SHARE = 0.5
"""Share of training trials that are single ones; the others mix up to three trials of one scene, as
the paper's augmentation does.
"""


def patterns_of(cube: int) -> int:
    """How many patterns a cube of another edge needs to be as finely described."""
    return round(PATTERNS * (cube / CUBE) ** 3)


def smooth_patterns(count: int, cube: int = CUBE) -> Tensor:
    """The `count` smoothest cosine patterns of a cube, (count, C) float32, orthonormal."""
    k = np.arange(cube)
    basis = np.cos(np.pi * np.outer(k, k + 0.5) / cube)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    triples = np.stack(np.meshgrid(k, k, k, indexing="ij"), -1).reshape(-1, 3)
    triples = triples[np.argsort((triples**2).sum(1), kind="stable")[:count]]
    patterns = [np.einsum("i,j,k->ijk", *(basis[t] for t in triple)).ravel() for triple in triples]
    return torch.from_numpy(np.stack(patterns)).float()


class Sampler:
    """Independent trials of the seen subjects as pattern coefficients of normalised cubes.

    Parameters
    ----------
    work : Path
        Folder that keeps what is worked out once.
    cube : int
        Edge of the cubes.

    Attributes
    ----------
    cube, patterns : int
        Edge, and coefficients of each cube, P.
    active : (N,) int64 tensor
        Active cubes.
    mean, std : (N, C) float32
        Statistics of every voxel over single trials of all seen subjects; 0 where a voxel is
        switched off.
    """

    def __init__(self, work: Path, cube: int = CUBE) -> None:
        self.cube, self.patterns = cube, patterns_of(cube)
        cache = work / ("sampler.safetensors" if cube == CUBE else f"sampler_{cube}.safetensors")
        if not cache.exists():
            cache.parent.mkdir(parents=True, exist_ok=True)
            save_file(_prepare(cube), cache)
        saved = load_file(cache)
        self.active, self.mean, self.std = saved["active"], saved["mean"], saved["std"]
        self._linear, self._offset = saved["linear"], saved["offset"]
        self._white, self._pool = saved["white"], saved["pool"].float()

    def batch(self, scenes: Scenes, rng: np.random.Generator) -> Tensor:
        """Coefficients (B, N, P) float32 of one trial for each scene; subjects take turns."""
        count = len(scenes)
        share = rng.dirichlet((1.0, 1.0, 1.0), count)
        share[rng.random(count) < SINGLE_SHARE] = (1, 0, 0)
        # Averaging independent trials with weights w leaves sqrt(sum w^2) of the noise.
        return self.trials(scenes, np.sqrt((share**2).sum(1)), rng)

    def places(self) -> Tensor:
        """The place that each cube sees best, (N,) int64: where most of a place's signal lies."""
        energy = self._energy()
        return (energy / energy.sum(0)).argmax(1)

    def strengths(self, directions: Tensor) -> Tensor:
        """How strongly each cube answers to each of K directions (K, 7) of a place's features,
        (N, 9, K) float32: the root of their signal's energy in it, of mean square 1.
        """
        by_place = self._linear[:, : PER_PLACE * len(PLACES)].unflatten(1, (len(PLACES), PER_PLACE))
        signal = torch.einsum("kf,spfx->spkx", directions, by_place)
        energy = signal.unflatten(3, (len(self.active), -1)).square().sum(4).mean(0)  # (9, K, N)
        return (energy / energy.mean()).sqrt().permute(2, 0, 1)

    def _energy(self) -> Tensor:
        """Signal of every place in each cube, (N, 9)."""
        signal = self._linear[:, : PER_PLACE * len(PLACES)].square()
        energy = signal.unflatten(1, (len(PLACES), PER_PLACE)).unflatten(3, (len(self.active), -1))
        return energy.sum((0, 2, 4)).T

    def moments(self, noise: float) -> tuple[Tensor, Tensor]:
        """Second moments over scenes, noise and seen subjects, its variance scaled by `noise`:
        covariance of features with coefficients (67, N P), and of coefficients (N P, N P).
        """
        features = torch.from_numpy(FEATURE_COVARIANCE).float()
        diffuse = self._pool.flatten(1)
        covariance = noise * (diffuse.T @ diffuse / len(diffuse))
        covariance.diagonal().add_(noise * self._white.square().flatten(1).mean(0))
        cross = torch.zeros(FEATURES, len(covariance))
        for linear in self._linear:
            signal, modes = linear[:FEATURES], linear[FEATURES:]
            tuned = features @ signal
            cross += tuned / len(SEEN)
            covariance += (1 + noise * GHOST_SCALE**2) / len(SEEN) * (signal.T @ tuned)
            covariance += noise / len(SEEN) * (modes.T @ modes)
        return cross, covariance

    def trials(
        self, scenes: Scenes, noise: NDArray[np.float64], rng: np.random.Generator
    ) -> Tensor:
        """The same with the noise of each trial scaled, for example by 1/sqrt(3) for the mean of
        three.
        """
        count = len(scenes)
        ghost = GHOST_SCALE * rng.standard_normal((count, FEATURES)) @ FEATURE_ROOT.T
        modes = rng.standard_normal((count, MODE_COUNT))
        drive = np.concatenate([encode(scenes) + noise[:, None] * ghost, noise[:, None] * modes], 1)
        white = torch.from_numpy(
            rng.standard_normal((count, *self._white.shape[1:]), dtype=np.float32)
        )
        mix = rng.standard_normal((count, 3)).astype(np.float32)
        mix_t = torch.from_numpy(mix / np.linalg.norm(mix, axis=1, keepdims=True))
        pick = torch.from_numpy(rng.integers(0, len(self._pool), (count, 3)))
        out = torch.einsum("bk,bknd->bnd", mix_t, self._pool[pick])
        subject = torch.arange(count) % len(SEEN)
        out = (out + white * self._white[subject]) * torch.from_numpy(noise.astype(np.float32))[
            :, None, None
        ]
        drive_t = torch.from_numpy(drive.astype(np.float32))
        for s in range(len(SEEN)):
            rows = slice(s, None, len(SEEN))
            out[rows] += (drive_t[rows] @ self._linear[s]).view_as(out[rows]) - self._offset
        return out


def _prepare(cube: int) -> dict[str, Tensor]:
    mask = union_mask()
    active = active_cubes(mask, cube)
    meter = Progress("world", 2 * len(SEEN) + POOL // len(MIRRORED))
    brains = [Brain(Subject(name)) for name in SEEN]
    maps = []
    for i, brain in enumerate(brains):
        maps.append(_linear_map(brain, active, cube))
        meter(i + 1, 0.0)
    mean, std = _statistics(brains, maps, active, cube)
    inverse = torch.where(std > 0, 1 / std.clamp_min(1e-6), 0.0)
    patterns = smooth_patterns(patterns_of(cube), cube)

    def project(tokens: Tensor) -> Tensor:
        return (tokens.view(-1, *inverse.shape) * inverse) @ patterns.T

    linear = torch.stack([project(m).flatten(1) for m in maps])
    white = []
    for i, brain in enumerate(brains):
        variance = (_white_variance(brain, active, cube).view(inverse.shape) * inverse**2) @ (
            patterns**2
        ).T
        white.append(variance.sqrt())
        meter(len(SEEN) + i + 1, 0.0)
    pool = []
    rng = np.random.default_rng([WORLD_SEED, 6])
    everywhere = torch.from_numpy(
        np.stack([b.subject.brain for b in brains[:1]]).astype(np.float32)
    )
    brain_grid = to_grid(everywhere)
    for i in range(POOL // len(MIRRORED)):
        field = torch.from_numpy(smooth_noise(GRID, DIFFUSE_SIGMA_MM, rng))
        # Noise on a torus has the same distribution in every mirror.
        mirrored = torch.stack([field.flip(axes) for axes in MIRRORED]) * brain_grid
        pool.append(NOISE_PERCENT * np.sqrt(DIFFUSE) * project(to_cubes(mirrored, active, cube)))
        meter(2 * len(SEEN) + i + 1, 0.0)
    return {
        "active": active,
        "mean": mean,
        "std": std,
        "linear": linear.contiguous(),
        "offset": project(mean)[0].contiguous(),
        "white": torch.stack(white),
        "pool": torch.cat(pool).half(),
    }


def _linear_map(brain: Brain, active: Tensor, cube: int) -> Tensor:
    """Features and mode amplitudes to raw tokens in percent, (67 + 12, N C)."""
    signal = brain.signal(np.eye(FEATURES, dtype=np.float32))
    modes = (
        brain.modes * brain.subject.brain * np.float32(NOISE_PERCENT * np.sqrt(MODES / MODE_COUNT))
    )
    return torch.cat([_tokens(signal, active, cube), _tokens(modes, active, cube)])


def _tokens(volumes: NDArray[np.generic], active: Tensor, cube: int) -> Tensor:
    grid = to_grid(torch.from_numpy(np.asarray(volumes, np.float32)))
    return to_cubes(grid, active, cube).flatten(1)


def _white_variance(brain: Brain, active: Tensor, cube: int) -> Tensor:
    """Variance of a subject's white noise in every token voxel, (N C,): interpolation averages
    neighbours.
    """
    factors = []
    for native, grid in zip(brain.subject.shape, GRID, strict=True):
        weights = torch.nn.functional.interpolate(
            torch.eye(native)[None], size=grid, mode="linear", align_corners=False
        )[0]
        factors.append((weights**2).sum(0))
    variance = torch.einsum("i,j,k->ijk", *factors)[None]
    inside = to_grid(torch.from_numpy(brain.subject.brain.astype(np.float32))[None])
    return (NOISE_PERCENT**2 * WHITE * to_cubes(variance * inside, active, cube)).flatten()


def _statistics(
    brains: list[Brain], maps: list[Tensor], active: Tensor, cube: int
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every voxel over single trials of all seen subjects, in closed
    form.
    """
    first, second = [], []
    root = torch.from_numpy(
        np.linalg.cholesky((1 + GHOST_SCALE**2) * FEATURE_COVARIANCE + 1e-9 * np.eye(FEATURES))
    )
    for brain, linear in zip(brains, maps, strict=True):
        signal, modes = linear[:FEATURES].double(), linear[FEATURES:].double()
        mean = torch.from_numpy(FEATURE_MEAN) @ signal
        inside = _tokens(brain.subject.brain[None], active, cube)[0].double()
        variance = ((root.T @ signal) ** 2).sum(0) + (modes**2).sum(0)
        variance += NOISE_PERCENT**2 * DIFFUSE * inside**2 + _white_variance(brain, active, cube)
        first.append(mean)
        second.append(variance + mean**2)
    mean = torch.stack(first).mean(0)
    std = (torch.stack(second).mean(0) - mean**2).clamp_min(0).sqrt()
    # A voxel that almost never lies in a brain has no scale; it is switched off.
    std[std < 0.3 * NOISE_PERCENT] = 0
    shape = (len(active), cube**3)
    return mean.float().view(shape), std.float().view(shape)
