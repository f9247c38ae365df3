"""The picture stage in PyTorch: diffusers' modules, stepped by the schedule tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.schedule import Schedule
from . import parts
from .checkpoint import Checkpoint
from .conditioning import clip_conditioning
from .cross_attention import keys_values
from .picture_encoder import PictureEncoder
from .schedules import make_schedule
from .settings import DiffusionSettings
from .to_onnx import VAEDecoder

Float = NDArray[np.float32]


class TorchDiffusion:
    """A Stable unCLIP pipeline, part by part; weights are loaded on first use.

    Parameters
    ----------
    checkpoint : Checkpoint
    settings : DiffusionSettings
    """

    def __init__(self, checkpoint: Checkpoint, settings: DiffusionSettings) -> None:
        self.root = checkpoint.root
        self.settings = settings
        self.scheduler = checkpoint.scheduler
        self.latent_shape = checkpoint.encoder.latent_shape
        self.clip_size = checkpoint.encoder.clip_size

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
    def preview_decoder(self) -> Any:
        """The tiny decoder, or None where the checkpoint has none."""
        return parts.load_preview_decoder(self.root)

    @cached_property
    def image_encoder(self) -> Any:
        """The pipeline's image encoder, or None where the checkpoint has no weights of it."""
        return parts.load_image_encoder(self.root)

    @cached_property
    def feature_extractor(self) -> dict[str, Any]:
        """What is done to a picture before the image encoder sees it."""
        return parts.load_feature_extractor(self.root)

    @cached_property
    def conditioning(self) -> dict[str, Float]:
        """Coefficients of the class labels, (D,) each."""
        return clip_conditioning(
            parts.load_normaliser(self.root),
            parts.load_noising_scheduler(self.root),
            self.settings.noise_level,
        )

    def release(self, name: str) -> None:
        """Forget a loaded part, by its property's name, to bound memory."""
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

    @torch.inference_mode()
    def keys_values(self, prompts: Sequence[str]) -> Float:
        """What the U-Net's cross-attentions make of prompt texts, (B, L, W) float32."""
        states = torch.from_numpy(self.prompt_states(prompts))
        return keys_values(self.unet, states).numpy()

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

    def mixed(self, latent: Float, noise: Float) -> Float:
        """The start of denoising, (B, 4, h, w) float32."""
        beta = self.settings.beta
        keep = 1 - beta if self.settings.mix == "literal" else math.sqrt(1 - beta**2)
        return (keep * latent + beta * noise).astype(np.float32)

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
        steps: int | None = None,
        schedule: str | None = None,
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
        steps : int, optional
        schedule : str, optional
            One of `schedules.SCHEDULES`; both by default the settings'.

        Returns
        -------
        clean : (B, 4, h, w) float32
            The denoised latent.
        images : (B, 3, H, W) float32
            In [-1, 1] up to overshoot.
        """
        start, clip_noise, rng = self.noise(seed)
        labels = self.class_labels(clip, np.broadcast_to(clip_noise, clip.shape))
        mixed = self.mixed(latent, start)
        plan = make_schedule(
            schedule or self.settings.schedule,
            self.scheduler,
            steps or self.settings.steps,
            self.settings.skip,
        )
        x, states, given = map(torch.from_numpy, (mixed, self.prompt_states(prompts), labels))
        clean = self._denoise(x, states, given, plan, rng).numpy()
        return clean, self.decode(clean)

    def _denoise(
        self, x: Tensor, states: Tensor, labels: Tensor, plan: Schedule, rng: np.random.Generator
    ) -> Tensor:
        met = torch.zeros(len(plan.final), *x.shape)
        met[0] = x
        for k in range(plan.steps):
            seen = torch.tensordot(torch.from_numpy(plan.inputs[k]), met, 1)
            met[1 + k] = self._predict(seen, float(plan.timesteps[k]), states, labels)
            if plan.draws_noise and k < plan.steps - 1:
                normal = rng.standard_normal(self.latent_shape, dtype=np.float32)
                met[1 + plan.steps + k] = torch.from_numpy(normal)
        return torch.tensordot(torch.from_numpy(plan.final), met, 1)

    def _predict(self, x: Tensor, timestep: float, states: Tensor, labels: Tensor) -> Tensor:
        if self.settings.guidance > 1:
            # the pipeline's unconditional half: empty text, and zeros for the whole label
            empty = torch.from_numpy(self.prompt_states([""])).expand_as(states)
            states = torch.cat([empty, states])
            labels = torch.cat([torch.zeros_like(labels), labels])
            x = torch.cat([x, x])
        time = torch.tensor(timestep)
        out = self.unet(x, time, encoder_hidden_states=states, class_labels=labels).sample
        if self.settings.guidance > 1:
            plain, told = out.chunk(2)
            out = plain + self.settings.guidance * (told - plain)
        return out

    def tiny_decoder(self) -> VAEDecoder | None:
        """The tiny decoder as a module from latent to picture; None where there is none."""
        return None if self.preview_decoder is None else VAEDecoder(self.preview_decoder)

    def picture_encoder(self, size: tuple[int, int]) -> PictureEncoder | None:
        """The image encoder behind its feature extractor, for pictures of a size; None where the
        checkpoint has no image encoder."""
        if self.image_encoder is None:
            return None
        return PictureEncoder(self.image_encoder, self.feature_extractor, size).eval()

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
