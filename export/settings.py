"""How pictures are made unless a caller says otherwise: what the paper leaves open on diffusion."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..runtime.errors import CheckpointError, InputError
from ..runtime.manifest_reader import MIXES
from .schedules import SCHEDULES, STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionSettings:
    """Defaults of the picture stage: the paper's, or Stable unCLIP's where the paper is silent."""

    beta: float = 0.93
    """Share of noise in the start, the paper's Eq. 4; 0 to 1."""
    mix: str = "literal"
    """literal: `(1 - beta) * latent + beta * noise`, as the paper writes it; variance:
    `sqrt(1 - beta^2) * latent + beta * noise`, which keeps the variance that the U-Net expects.
    """
    skip: float = 0.0
    """Share of the way from noise to picture that is left out, 0 to below 1."""
    guidance: float = 1.0
    """Classifier-free guidance scale; above 1 the U-Net graph takes a batch of two."""
    noise_level: int = 0
    """Noise on the CLIP vector, in timesteps of the pipeline's image noising scheduler."""
    schedule: str = "ddim"
    steps: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise InputError(f"'beta' must be from 0 to 1; got {self.beta}")
        if self.mix not in MIXES:
            raise InputError(f"'mix' must be one of {', '.join(MIXES)}; got {self.mix!r}")
        if not 0 <= self.skip <= 0.9:
            raise InputError(f"'skip' must be from 0 to 0.9; got {self.skip}")
        if self.guidance < 1:
            raise InputError(f"'guidance' must be at least 1; got {self.guidance}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"'schedule' must be one of {list(SCHEDULES)}; got {self.schedule!r}")
        if self.steps not in STEPS:
            raise InputError(f"'steps' must be one of {list(STEPS)}; got {self.steps}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiffusionSettings:
        """Build from a checkpoint's `diffusion/sampling.json`; unknown keys: CheckpointError."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise CheckpointError(
                f"diffusion/sampling.json has unknown keys {unknown}; "
                f"expected of {', '.join(known)}"
            )
        return cls(**values)
