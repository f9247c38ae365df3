"""Stage `vae`: the autoencoder whose latent the encoder predicts and the U-Net denoises."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from .clip import pixels
from .scenes import IMAGE_SIZE, draw_scenes
from .training import Recipe, train

LATENT_SHAPE = (4, 16, 16)
RECIPE = Recipe(steps=3000, batch=16, learning_rate=1.2e-3)
OBJECT_WEIGHT = 8.0
"""How much more an object's pixel counts than one of the plain background."""
KL_WEIGHT = 1e-6


def build() -> AutoencoderKL:
    """64 x 64 pictures to 4 x 16 x 16 latents."""
    blocks: dict[str, Any] = {  # which diffusers annotates as tuples of one
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 32, 64),
    }
    return AutoencoderKL(
        **blocks,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def train_vae(checkpoint: Path, work: Path) -> None:
    """Train the autoencoder and write it to the checkpoint's diffusion/vae folder."""
    torch.manual_seed(21)
    # Convolutions on few channels are twice as fast with the channels innermost.
    model: Any = build()  # diffusers wraps `to` and `half`, which hides their arguments
    model.to(memory_format=torch.channels_last)
    state = work / "vae.safetensors"
    train("vae", model, lambda step: vae_loss(model, step), RECIPE, state)
    model.register_to_config(scaling_factor=_scaling_factor(model))
    model.half().to(memory_format=torch.contiguous_format).save_pretrained(
        checkpoint / "diffusion/vae"
    )
    state.unlink(missing_ok=True)


def vae_loss(model: AutoencoderKL, step: int) -> Tensor:
    """Absolute and squared error of the reconstruction, with a small pull of the latent towards a
    normal distribution.
    """
    images = pixels(draw_scenes(RECIPE.batch, np.random.default_rng([22, step])))
    posterior = cast(Any, model.encode(images)).latent_dist  # annotated as a tuple
    latent = posterior.mean + posterior.std * torch.randn(
        posterior.mean.shape, generator=torch.Generator().manual_seed(step)
    )
    error = cast(Any, model.decode(latent)).sample - images
    background = images[:, :, -1:, -1:]
    objects = ((images - background).abs() > 0.02).any(1, keepdim=True)
    weight = 1 + OBJECT_WEIGHT * objects
    fidelity = (weight * (error.abs() + error**2)).sum() / (weight.sum() * images.shape[1])
    return fidelity + KL_WEIGHT * posterior.kl().sum() / len(images)


@torch.no_grad()
def _scaling_factor(model: AutoencoderKL) -> float:
    images = pixels(draw_scenes(256, np.random.default_rng(23)))
    return float(1 / cast(Any, model.encode(images)).latent_dist.mean.std())
