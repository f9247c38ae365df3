"""Volume -> normalised tokens with torch's own resampling: what the golden tokens are made with.

Deliberately not `kernels/`: a bundle is verified against a second opinion.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray
from torch.nn import functional as F

from .checkpoint import Checkpoint
from .cubes import cut_cubes
from .vit3d import ViT3DConfig


def volume_tokens(image: nib.Nifti1Image, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """Normalised tokens of one volume, (1, N, C), for the encoder that decodes; see
    `cube_tokens`."""
    return cube_tokens(
        image, checkpoint.encoder, checkpoint.active, checkpoint.mean, checkpoint.inv_std
    )


def cube_tokens(
    image: nib.Nifti1Image,
    config: ViT3DConfig,
    active: NDArray[np.int64],
    mean: NDArray[np.float32],
    inv_std: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Normalised tokens of one volume for any encoder.

    Parameters
    ----------
    image : Nifti1Image
        (X, Y, Z), any orientation; slope and intercept are applied, then the checkpoint's input
        scale.
    config : ViT3DConfig
        Geometry.
    active : (N,) int64
        Flat C-order indices of the cubes.
    mean, inv_std : (N, C) float32
        Statistics of the cubes' voxels.

    Returns
    -------
    tokens : (1, N, C) float32
        z-scores, 0 in padding and masked voxels.
    """
    data = np.asarray(image.dataobj, np.float64) * float(config.input["scale"])
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(config.axcodes)))
    oriented = apply_orientation(data, turn)
    affine = image.affine @ inv_ornt_aff(turn, data.shape)
    resample = {"resize": _resize, "affine": _sample}[config.mapping]
    cubes = cut_cubes(resample(oriented, affine, config), config.cube, config.pad)
    tokens = (cubes[active] - mean) * inv_std
    return tokens[None].astype(np.float32)


def _resize(
    data: NDArray[np.float64], affine: NDArray[np.float64], config: ViT3DConfig
) -> NDArray[np.float64]:
    """The paper's mapping: shape to shape, wherever the volume lies."""
    resized = F.interpolate(
        torch.from_numpy(np.ascontiguousarray(data))[None, None],
        config.grid,
        mode="trilinear",
        align_corners=config.align_corners,
    )
    return resized[0, 0].numpy()


def _sample(
    data: NDArray[np.float64], affine: NDArray[np.float64], config: ViT3DConfig
) -> NDArray[np.float64]:
    """Through world space; edge values up to half a voxel outside the volume, 0 beyond."""
    matrix = np.linalg.inv(affine) @ np.array(config.affine)
    grid = np.stack(np.meshgrid(*map(np.arange, config.grid), indexing="ij"), axis=-1)
    points = grid @ matrix[:3, :3].T + matrix[:3, 3]  # (X, Y, Z, 3) voxels of the volume
    size = np.array(data.shape)
    inside = ((points >= -0.5) & (points <= size - 0.5)).all(axis=-1)
    # grid_sample wants the last axis first, and -1 to 1 between the centres of the end voxels
    scaled = points / np.maximum(size - 1, 1) * 2 - 1
    sampled = F.grid_sample(
        torch.from_numpy(np.ascontiguousarray(data))[None, None],
        torch.from_numpy(scaled[..., ::-1].copy())[None],
        padding_mode="border",
        align_corners=True,
    )
    return np.where(inside, sampled[0, 0].numpy(), 0.0)
