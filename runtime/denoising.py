"""What denoising starts from and what it gives, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ScansideError

Floats = NDArray[np.float32]

CONDITIONING = ("clip_scale", "clip_shift", "clip_noise", "level_embedding")
"""Arrays of the bundle that make class labels of a CLIP vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What one picture is made from."""

    clip: Floats
    """(1, D) CLIP image embedding."""
    latent: Floats
    """(1, 4, h, w) predicted latent, in the diffusion model's units."""
    states: Floats
    """(1, L, W) keys and values of the prompt for every cross-attention."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What is known after a denoising step."""

    number: int
    """From 1."""
    of: int
    latent: Floats
    """(1, 4, h, w) clean latent: a guess after every step but the last."""


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A picture that was made without a look in between."""

    step: Step
    """The last one."""
    pixels: NDArray[np.uint8]
    """(H, W, 3)."""
    image: Floats | None
    """(1, 3, H, W) float32 in [-1, 1] up to overshoot, where it was asked for."""
    denoised_s: float
    """Time that the GPU took for the steps, and for the picture of the latent."""
    decoded_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """A picture that a GPU is at."""

    ready: Callable[[], bool]
    """Whether `whole` would not wait."""
    whole: Callable[[], Whole]
    """Waits for it; ScansideError where latent or picture are not finite."""


def finite_step(step: Step) -> Step:
    """The step itself; ScansideError where its latent is not finite."""
    if not np.isfinite(step.latent).all():
        raise ScansideError(
            f"the latent is not finite after step {step.number} of {step.of}; check the "
            "volume's units, and the bundle with scanside verify"
        )
    return step
