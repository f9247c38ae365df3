"""The picture stage in PyTorch: diffusers' modules, stepped by the schedule tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import parts
from .checkpoint import Checkpoint
from .conditioning import clip_conditioning
from .schedules import SCHEDULES, Table

Float = NDArray[np.float32]


class TorchDiffusion:
    """A Stable unCLIP pipeline, part by part; weights are loaded on first use.

    Parameters
    ----------
    checkpoint : Checkpoint
    beta : float
        Share of noise in the start, `(1 - beta) * latent + beta * noise` (the paper's Eq. 4).
    guidance : float
        Classifier-free guidance scale; 1 for none.
    noise_level : int
        Noise on the CLIP vector, as in Stable unCLIP.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, beta: float, guidance: float, noise_level: int
    ) -> None:
        self.root = checkpoint.root
        self.scheduler = checkpoint.scheduler
        self.latent_shape = checkpoint.encoder.latent_shape
        self.clip_size = checkpoint.encoder.clip_size
        self.beta = beta
        self.guidance = guidance
        self.noise_level = noise_level

    @cached_property
    def text_encoder(self) -> Any:
        """The text encoder."""
        return parts.load_text_encoder(self.root)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return parts.load_prompt_tokenizer(self.root)

    @cached_property
    def unet(self) -> Any:
        """The denoiser."""
        return parts.load_unet(self.root)

    @cached_property
    def vae(self) -> Any:
        """The picture autoencoder."""
        return parts.load_vae(self.root)

    @cached_property
    def conditioning(self) -> dict[str, Float]:
        """Coefficients of the class labels, (D,) each."""
        return clip_conditioning(
            parts.load_normaliser(self.root),
            parts.load_noising_scheduler(self.root),
            self.noise_level,
        )

    def release(self, name: str) -> None:
        """Forget a loaded part ("unet", "vae", "text_encoder"), to bound memory."""
        self.__dict__.pop(name, None)

    @torch.inference_mode()
    def prompt_states(self, prompts: Sequence[str]) -> Float:
        """Hidden states of prompt texts, cut and padded to the encoder's length.

        Returns
        -------
        states : (B, L, d) float32
        """
        ids = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids)[0].numpy()

    def class_labels(self, clip: Float, normal: Float) -> Float:
        """The U-Net's condition: noised CLIP vector and noise level.

        Parameters
        ----------
        clip, normal : (B, D) float32
            CLIP vectors and standard normal noise.

        Returns
        -------
        labels : (B, 2 D) float32
        """
        c = self.conditioning
        noised = clip * c["clip_scale"] + c["clip_shift"] + normal * c["clip_noise"]
        level = np.broadcast_to(c["level_embedding"], clip.shape)
        return np.concatenate([noised, level], axis=1, dtype=np.float32)

    def noise(self, seed: int) -> tuple[Float, Float, np.random.Generator]:
        """Start noise (4, h, w), CLIP noise (D,), and the generator for what follows.

        The same on every machine, and the same as the runtime draws.
        """
        rng = np.random.Generator(np.random.Philox(seed))
        start = rng.standard_normal(self.latent_shape, dtype=np.float32)
        clip = rng.standard_normal(self.clip_size, dtype=np.float32)
        return start, clip, rng

    @torch.inference_mode()
    def image(
        self,
        clip: Float,
        latent: Float,
        prompts: Sequence[str],
        seed: int,
        *,
        steps: int = 8,
        schedule: str = "ddim",
    ) -> tuple[Float, Float]:
        """Pictures from the mixed start.

        Parameters
        ----------
        clip : (B, D) float32
        latent : (B, 4, h, w) float32
        prompts : sequence of B str
            Texts the U-Net attends to; "" for none.
        seed : int
            Every row gets the same noise, as each would alone.
        steps : int
        schedule : {"ddim", "dpmpp_2m"}

        Returns
        -------
        clean : (B, 4, h, w) float32
            The denoised latent.
        images : (B, 3, H, W) float32
            In [-1, 1] up to overshoot.
        """
        start, clip_noise, rng = self.noise(seed)
        labels = self.class_labels(clip, np.broadcast_to(clip_noise, clip.shape))
        mixed = ((1 - self.beta) * latent + self.beta * start).astype(np.float32)
        table = SCHEDULES[schedule](self.scheduler, steps)
        x, states, given = map(torch.from_numpy, (mixed, self.prompt_states(prompts), labels))
        clean = self._denoise(x, states, given, table, rng).numpy()
        return clean, self.decode(clean)

    def _denoise(
        self, x: Tensor, states: Tensor, labels: Tensor, table: Table, rng: np.random.Generator
    ) -> Tensor:
        last = torch.zeros_like(x)
        for t, in_scale, x0_x, x0_out, x_x, x0_now, x0_last, noise in table.tolist():
            out = self._predict(in_scale * x, t, states, labels)
            guess = x0_x * x + x0_out * out
            x = x_x * x + x0_now * guess + x0_last * last
            if noise:
                normal = rng.standard_normal(self.latent_shape, dtype=np.float32)
                x = x + noise * torch.from_numpy(normal)
            last = guess
        return x

    def _predict(self, x: Tensor, timestep: float, states: Tensor, labels: Tensor) -> Tensor:
        if self.guidance > 1:
            # the pipeline's unconditional half: empty text, and zeros for the whole label
            empty = torch.from_numpy(self.prompt_states([""])).expand_as(states)
            states = torch.cat([empty, states])
            labels = torch.cat([torch.zeros_like(labels), labels])
            x = torch.cat([x, x])
        time = torch.tensor(timestep)
        out = self.unet(x, time, encoder_hidden_states=states, class_labels=labels).sample
        if self.guidance > 1:
            plain, told = out.chunk(2)
            out = plain + self.guidance * (told - plain)
        return out

    @torch.inference_mode()
    def decode(self, latent: Float) -> Float:
        """VAE decoding of latents in diffusion units; of the encoder's own latent, the preview.

        Parameters
        ----------
        latent : (B, 4, h, w) float32

        Returns
        -------
        images : (B, 3, H, W) float32
        """
        scaled = torch.from_numpy(latent) / self.vae.config.scaling_factor
        return self.vae.decode(scaled).sample.numpy()
