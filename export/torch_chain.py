"""The whole chain in PyTorch: tokens -> clip, latent, prefix -> text -> picture.

What the compiled chain is compared with, in golden outputs and in scores. Written with each
library's own calls (`generate`, diffusers' modules): no ONNX, no llama.cpp. Parts are loaded on
first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from . import parts
from .checkpoint import Checkpoint, open_checkpoint
from .localizer import EncoderWithHidden
from .settings import DiffusionSettings
from .torch_diffusion import TorchDiffusion
from .torch_language import TorchLanguage
from .vit3d import ViT3D

Float = NDArray[np.float32]


class TorchChain:
    """A checkpoint that decodes in PyTorch, float32, on the CPU.

    Parameters
    ----------
    checkpoint : Checkpoint
        Already validated.
    settings : DiffusionSettings, optional
        By default the checkpoint's own.
    """

    def __init__(self, checkpoint: Checkpoint, settings: DiffusionSettings | None = None) -> None:
        self.checkpoint = checkpoint
        self.settings = settings or DiffusionSettings.from_dict(checkpoint.sampling)
        self.language = TorchLanguage(checkpoint.root, checkpoint.dialogue)
        self.diffusion = TorchDiffusion(checkpoint, self.settings)

    @classmethod
    def open(cls, checkpoint_dir: str | Path) -> TorchChain:
        """Open a checkpoint directory with its own settings."""
        return cls(open_checkpoint(Path(checkpoint_dir)))

    @cached_property
    def encoder(self) -> ViT3D:
        """The brain encoder."""
        return parts.load_encoder(self.checkpoint.root)

    @torch.inference_mode()
    def encode(self, tokens: Float) -> tuple[Float, Float, Float]:
        """Encode normalised tokens.

        Parameters
        ----------
        tokens : (B, N, C) float32

        Returns
        -------
        clip : (B, D) float32
        latent : (B, 4, h, w) float32
        prefix : (B, M, d) float32
        """
        clip, latent, prefix = self.encoder(torch.from_numpy(np.ascontiguousarray(tokens)))
        return clip.numpy(), latent.numpy(), prefix.numpy()

    @torch.inference_mode()
    def encode_with_hidden(self, tokens: Float) -> tuple[Float, Float, Float, Float]:
        """What `encode` gives, and the penultimate layer, (B, N+1, D) float32."""
        outputs = EncoderWithHidden(self.encoder)(torch.from_numpy(np.ascontiguousarray(tokens)))
        clip, latent, prefix, hidden = (output.numpy() for output in outputs)
        return clip, latent, prefix, hidden

    def text(self, prefix: Float, task: str, *, question: str | None = None) -> list[str]:
        """Greedy answers to one instruction; see `TorchLanguage.text`."""
        return self.language.text(prefix, task, question=question)

    def image(
        self,
        clip: Float,
        latent: Float,
        prompts: Sequence[str],
        seed: int,
        *,
        steps: int | None = None,
        schedule: str | None = None,
    ) -> tuple[Float, Float]:
        """Denoised latents and pictures; see `TorchDiffusion.image`."""
        return self.diffusion.image(clip, latent, prompts, seed, steps=steps, schedule=schedule)

    def decode(self, latent: Float) -> Float:
        """Pictures of latents; see `TorchDiffusion.decode`."""
        return self.diffusion.decode(latent)
