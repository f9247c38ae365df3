"""What the frozen CLIP and VAE say about the training scenes: computed once, used by the encoder
and by the diffusion stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from .clip import pixels
from .scenes import Scenes, draw_scenes
from .training import Progress

COUNT = 16_384
"""Training scenes; what varies without end is the noise of the brain."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Scenes with their targets.

    Attributes
    ----------
    latent : (S, 4, 16, 16) float32
        VAE latents in the diffusion model's units.
    clip : (S, 128) float32
        CLIP image vectors, not normalised.
    """

    scenes: Scenes
    latent: Tensor
    clip: Tensor

    def __getitem__(self, index: Tensor) -> Targets:
        return Targets(self.scenes[index.numpy()], self.latent[index], self.clip[index])


class FrozenEncoders:
    """The trained image encoder and VAE of a checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        folder = checkpoint / "diffusion"
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
        self.image = CLIPVisionModelWithProjection.from_pretrained(
            folder / "image_encoder", dtype=torch.float32
        ).eval()

    @torch.no_grad()
    def __call__(self, scenes: Scenes) -> Targets:
        """Targets of up to a few hundred scenes."""
        images = pixels(scenes)
        vae: Any = self.vae  # diffusers annotates neither what it returns nor its settings
        latent = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        return Targets(scenes, latent, self.image(images).image_embeds)


def training_targets(checkpoint: Path, work: Path) -> Targets:
    """Targets of the training scenes, from the cache if it is there."""
    cache = work / "targets.safetensors"
    if not cache.exists():
        _compute(checkpoint, cache)
    saved = load_file(cache)
    scenes = Scenes(saved["things"].numpy(), saved["background"].numpy())
    return Targets(scenes, saved["latent"].float(), saved["clip"])


def _compute(checkpoint: Path, cache: Path) -> None:
    frozen = FrozenEncoders(checkpoint)
    scenes = draw_scenes(COUNT, np.random.default_rng(31))
    meter = Progress("targets", COUNT // 128)
    parts = []
    for i in range(0, COUNT, 128):
        parts.append(frozen(scenes[i : i + 128]))
        meter(i // 128 + 1, 0.0)
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "things": torch.from_numpy(scenes.things),
            "background": torch.from_numpy(scenes.background),
            "latent": torch.cat([p.latent for p in parts]).half(),
            "clip": torch.cat([p.clip for p in parts]),
        },
        cache,
    )
