"""geometry/ of the checkpoint: the mask, and what every voxel's values are measured by.

All encoders read one mean and one standard deviation of each voxel, whatever the size of their
cubes; but the cubes of each cover a region of its own, so every stage adds what it needs.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .sampler import Sampler
from .trials import union_mask
from .world import GRID, Subject

STEPS = {"mean": 1 / 16, "std": 1 / 32}
"""Percent signal change to which statistics are rounded, so that their files are small. Standard
deviations start at 0.3 and are mostly twice that, so a z-score moves by a few percent of its noise,
and in every volume by the same.
"""


def write_geometry(sampler: Sampler, checkpoint: Path) -> None:
    """Write the mask, and mean and standard deviation of the voxels that a sampler's cubes hold."""
    folder = checkpoint / "geometry"
    folder.mkdir(parents=True, exist_ok=True)
    _save(union_mask().astype(np.uint8), folder / "mask.nii.gz")
    for name, volume in _statistics(sampler).items():
        _save(volume, folder / f"{name}.nii.gz")


def add_statistics(sampler: Sampler, checkpoint: Path) -> None:
    """The same for voxels that have none yet; all others keep theirs."""
    folder = checkpoint / "geometry"
    old = {
        name: np.asarray(nib.Nifti1Image.from_filename(folder / f"{name}.nii.gz").dataobj)
        for name in ("mean", "std")
    }
    new = _statistics(sampler)
    fresh = (old["std"] == 0) & (new["std"] > 0)
    for name, volume in old.items():
        _save(np.where(fresh, new[name], volume).astype(np.float32), folder / f"{name}.nii.gz")


def _statistics(sampler: Sampler) -> dict[str, NDArray[np.float32]]:
    volumes = {"mean": sampler.mean, "std": sampler.std}
    return {
        name: rounded(to_volume(tokens, sampler.active, sampler.cube).numpy(), STEPS[name])
        for name, tokens in volumes.items()
    }


def rounded(volume: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    """A volume in whole steps."""
    return (np.round(volume / step) * step).astype(np.float32)


def to_volume(tokens: Tensor, active: Tensor, cube: int) -> Tensor:
    """Tokens (N, C) put back on the model grid, 0 elsewhere: (83, 104, 81) float32."""
    counts = [-(-size // cube) for size in GRID]
    cubes = torch.zeros(int(np.prod(counts)), cube**3)
    cubes[active] = tokens
    padded = cubes.view(*counts, cube, cube, cube).permute(0, 3, 1, 4, 2, 5)
    full = padded.reshape([n * cube for n in counts])
    return full[: GRID[0], : GRID[1], : GRID[2]].contiguous()


def _save(volume: NDArray[np.generic], path: Path) -> None:
    image = nib.Nifti1Image(volume, Subject("S1").affine)
    # nibabel packs for speed; this is written once, and shipped
    path.write_bytes(gzip.compress(image.to_bytes(), 9, mtime=0))
