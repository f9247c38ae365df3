"""Trials of the reference world: beta volumes on native grids, the paper's resize, and cubes.

`Session` simulates native volumes one after another, as a scanner would deliver them. Everything
that is scored or shipped comes from here; training draws from the same distribution through
`sampler.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .features import encode
from .noise import TRIAL_CORRELATION, Brain
from .scenes import Scenes
from .world import GRID, NATIVE_SHAPES, Subject

CUBE = 14
"""Edge of a cube of the encoder that decodes."""
KEEP_FRACTION = 0.05


class Session:
    """Trials of one subject in the order in which they are shown; the smooth noise remembers the
    trial before.
    """

    def __init__(self, brain: Brain, seed: int) -> None:
        self._brain = brain
        self._rng = np.random.default_rng([seed, int(brain.subject.name[1])])
        self._memory: NDArray[np.float32] | None = None

    def trials(self, scenes: Scenes) -> Iterator[NDArray[np.float32]]:
        """Beta volumes (X, Y, Z) float32 in percent signal change, 0 outside the brain, one for
        each scene.
        """
        for i in range(len(scenes)):
            yield self._trial(encode(scenes[i : i + 1]))

    def _trial(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        new = self._brain.correlated_noise(self._rng)
        if self._memory is not None:
            new *= math.sqrt(1 - TRIAL_CORRELATION**2)
            new += TRIAL_CORRELATION * self._memory
        self._memory = new
        volume = self._brain.signal(features)[0] + new + self._brain.white_noise(self._rng)
        return volume * self._brain.subject.brain


def to_nifti(volume: NDArray[np.float32], subject: Subject) -> nib.Nifti1Image:
    """A volume as NSD stores its betas: RAS order, int16, 300 units for one percent.

    Written and read back in memory, so that it holds what a file would.
    """
    stored = np.round(np.clip(volume.T, -109, 109) * 300).astype(np.int16)
    image = nib.Nifti1Image(stored, subject.affine[:, [2, 1, 0, 3]])
    image.header.set_slope_inter(1 / 300, 0)
    image.header.set_xyzt_units("mm")
    return nib.Nifti1Image.from_bytes(image.to_bytes())


def to_grid(volumes: Tensor) -> Tensor:
    """The paper's resize of (B, X, Y, Z) volumes to the model grid."""
    return F.interpolate(volumes[:, None], size=GRID, mode="trilinear", align_corners=False)[:, 0]


def to_cubes(volumes: Tensor, active: Tensor, cube: int = CUBE) -> Tensor:
    """Volumes on the model grid, (B, 83, 104, 81), as active cubes (B, N, cube^3), padded at the
    back.
    """
    pads = [(-size) % cube for size in GRID]
    padded = F.pad(volumes, (0, pads[2], 0, pads[1], 0, pads[0]))
    b, x, y, z = padded.shape
    cubes = padded.reshape(b, x // cube, cube, y // cube, cube, z // cube, cube)
    return cubes.permute(0, 1, 3, 5, 2, 4, 6).reshape(b, -1, cube**3)[:, active]


def union_mask() -> NDArray[np.bool_]:
    """Union of all eight subjects' visual masks on the model grid."""
    mask = np.zeros(GRID, bool)
    for name in NATIVE_SHAPES:
        native = torch.from_numpy(Subject(name).mask.astype(np.float32))
        mask |= to_grid(native[None])[0].numpy() > 0.5
    return mask


def active_cubes(mask: NDArray[np.bool_], cube: int = CUBE) -> Tensor:
    """Flat indices of the cubes of which at least five percent lie in the mask, (N,) int64."""
    everything = torch.arange(int(np.prod([-(-size // cube) for size in GRID])))
    share = to_cubes(torch.from_numpy(mask.astype(np.float32))[None], everything, cube)[0].mean(1)
    return everything[share >= KEEP_FRACTION]
