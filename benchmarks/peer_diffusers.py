"""The picture with diffusers: its Stable unCLIP pipeline, given embedding and start."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableUnCLIPImg2ImgPipeline
from diffusers.utils import logging
from numpy.typing import NDArray

from scanside.export.checkpoint import open_checkpoint
from scanside.export.schedules import make_scheduler
from scanside.export.settings import DiffusionSettings

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class DiffusersPicture:
    """A checkpoint's pipeline.

    Parameters
    ----------
    checkpoint : Path
    dtype : torch.dtype
        Of weights and arithmetic.
    steps : int, optional
        Denoising steps; by default the checkpoint's.
    compiled : bool
        Let inductor generate code for U-Net and decoder, which it does at the first picture.
    """

    def __init__(
        self,
        checkpoint: Path,
        dtype: torch.dtype = torch.float32,
        *,
        steps: int | None = None,
        compiled: bool = False,
    ) -> None:
        opened = open_checkpoint(checkpoint)
        self.settings = DiffusionSettings.from_dict(opened.sampling)
        self.steps = steps or self.settings.steps
        self.latent_shape = opened.encoder.latent_shape
        self.clip_size = opened.encoder.clip_size
        self.dtype = dtype
        logging.set_verbosity_error()  # it advises a package, at every part
        logging.disable_progress_bar()
        pipe: Any = StableUnCLIPImg2ImgPipeline.from_pretrained(
            checkpoint / "diffusion", torch_dtype=dtype
        )
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = make_scheduler(self.settings.schedule, pipe.scheduler.config, self.steps)
        if compiled:
            pipe.unet = torch.compile(pipe.unet)
            pipe.vae.decode = torch.compile(pipe.vae.decode)
        self.pipe = pipe
        tiny = checkpoint / "diffusion" / "preview_decoder"
        self.tiny: Any = None
        if tiny.is_dir():
            self.tiny = AutoencoderTiny.from_pretrained(tiny, torch_dtype=dtype).eval()
        self._noise_embeddings = pipe.noise_image_embeddings

    def __call__(self, prompt: str, clip: Floats, latent: Floats, seed: int = 0) -> Pixels:
        """(H, W, 3) of a prompt, a CLIP vector (1, D) and a predicted latent (1, 4, h, w).

        Noise comes from NumPy's Philox, for all contenders must make the same picture.
        """
        rng = np.random.Generator(np.random.Philox(seed))
        start = rng.standard_normal(self.latent_shape, dtype=np.float32)
        clip_noise = rng.standard_normal(clip.shape, dtype=np.float32)
        self.pipe.noise_image_embeddings = lambda image_embeds, noise_level, **_: (
            self._noise_embeddings(
                image_embeds, noise_level, noise=torch.from_numpy(clip_noise).to(self.dtype)
            )
        )
        latents = torch.from_numpy(self._mixed(latent, start)).to(self.dtype)
        image = self.pipe(
            prompt=prompt,
            image_embeds=torch.from_numpy(clip).to(self.dtype),
            latents=latents * self.pipe.scheduler.init_noise_sigma,
            num_inference_steps=self.steps,
            guidance_scale=self.settings.guidance,
            noise_level=self.settings.noise_level,
            output_type="np",
        ).images[0]
        return np.round(image * 255).astype(np.uint8)

    @torch.inference_mode()
    def preview(self, latent: Floats) -> Pixels:
        """(H, W, 3) of a predicted latent (1, 4, h, w), without diffusion; through the checkpoint's
        tiny decoder, if it has one.
        """
        decoder = self.tiny or self.pipe.vae
        scaled = torch.from_numpy(latent).to(self.dtype) / decoder.config.scaling_factor
        image = decoder.decode(scaled, return_dict=False)[0]
        pixels = self.pipe.image_processor.postprocess(image, output_type="np")[0]
        return np.round(pixels * 255).astype(np.uint8)

    def _mixed(self, latent: Floats, start: Floats) -> Floats:
        """The paper's Eq. 4."""
        beta = self.settings.beta
        keep = 1 - beta if self.settings.mix == "literal" else math.sqrt(1 - beta**2)
        return (keep * latent + beta * start).astype(np.float32)
