"""The U-Net's class labels as arithmetic on the CLIP vector; the runtime needs no diffusers.

Stable unCLIP noises the CLIP vector before it conditions on it: normalise, mix with noise at
`noise_level`, undo the normalisation, append an embedding of the level. All of it is affine in the
vector and the noise: class_labels = concat(clip * clip_scale + clip_shift + clip_noise * normal,
level_embedding).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.models.embeddings import get_timestep_embedding
from numpy.typing import NDArray

from ..runtime.errors import InputError


def clip_conditioning(
    normaliser: Any, scheduler: Any, noise_level: int
) -> dict[str, NDArray[np.float32]]:
    """Coefficients of the class labels.

    Parameters
    ----------
    normaliser : StableUnCLIPImageNormalizer
        Mean and spread of the training embeddings, D each.
    scheduler : DDPMScheduler
        The pipeline's `image_noising_scheduler`.
    noise_level : int
        Timestep of that scheduler, 0 for the least noise.

    Returns
    -------
    arrays : dict
        clip_scale, clip_shift, clip_noise, level_embedding; (D,) float32 each.

    Raises
    ------
    InputError
        The scheduler has no such level.
    """
    levels = scheduler.config.num_train_timesteps
    if not 0 <= noise_level < levels:
        raise InputError(f"'noise_level' must be from 0 to {levels - 1}; got {noise_level}")
    alpha_bar = float(scheduler.alphas_cumprod[noise_level])
    mean = normaliser.mean.detach().double().numpy()[0]
    std = normaliser.std.detach().double().numpy()[0]
    level = get_timestep_embedding(
        torch.tensor([noise_level]), len(mean), flip_sin_to_cos=True, downscale_freq_shift=0
    )
    arrays = {
        "clip_scale": np.full_like(mean, alpha_bar**0.5),
        "clip_shift": mean * (1 - alpha_bar**0.5),
        "clip_noise": std * (1 - alpha_bar) ** 0.5,
        "level_embedding": level[0].numpy(),
    }
    return {name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()}
