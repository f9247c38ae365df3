"""The picture: Stable unCLIP as arithmetic around two graphs, with the schedule as a table.

The start is the paper's Eq. 4, `(1 - beta) * latent + beta * noise`. One row of a table is one
step:

    out = unet(in_scale * x, timestep);  x0 = x0_x * x + x0_out * out
    x  <- x_x * x + x0_now * x0 + x0_last * (x0 of the last step) + noise * normal

Noise comes from Philox with the caller's seed, in a fixed order (start, clip vector, steps), so
that a seed gives the same picture on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Engine
from .errors import BundleError, InputError, ScansideError
from .manifest import DiffusionSpec

Floats = NDArray[np.float32]
_CONDITIONING = ("clip_scale", "clip_shift", "clip_noise", "level_embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What one picture is made from."""

    clip: Floats
    """(1, D) CLIP image embedding."""
    latent: Floats
    """(1, 4, h, w) predicted latent, in the diffusion model's units."""
    states: Floats
    """(1, L, d) states of the prompt."""


class Reconstruction:
    """The diffusion stage of a bundle.

    Parameters
    ----------
    unet : Engine
        sample (B, 4, h, w), timestep (1,), states (B, L, d), class_labels (B, 2 D) -> out (B, 4, h,
        w); B is 2 with guidance, else 1.
    vae : Engine
        latent (1, 4, h, w) -> image (1, 3, H, W) in [-1, 1].
    spec : DiffusionSpec
    arrays : mapping
        Conditioning and tables of diffusion.npz.
    empty_states : (1, L, d) float32
        States of no text, the other half of guidance.

    Raises
    ------
    BundleError
        A table or a conditioning array is missing.
    """

    def __init__(
        self,
        unet: Engine,
        vae: Engine,
        spec: DiffusionSpec,
        arrays: Mapping[str, NDArray[Any]],
        empty_states: Floats,
    ) -> None:
        self._unet = unet
        self._vae = vae
        self._spec = spec
        self._arrays = arrays
        self._empty = empty_states
        self._timestep_type = unet.inputs["timestep"].dtype
        tables = [
            f"{n}_{k}{end}" for n, s in spec.schedules.items() for k in s for end in ("", "_start")
        ]
        missing = [name for name in (*_CONDITIONING, *tables) if name not in arrays]
        if missing:
            raise BundleError(
                f"{spec.arrays} lacks {', '.join(missing[:5])}; export the bundle again"
            )

    def check_steps(self, steps: int | None) -> int:
        """The steps asked for, or the bundle's; InputError if there is no table for them."""
        available = self._spec.schedules[self._spec.schedule]
        if steps is None:
            return self._spec.steps
        if steps not in available:
            raise InputError(
                f"'steps' must be one of {', '.join(map(str, available))}, for which this bundle "
                f"has {self._spec.schedule} tables; got {steps}"
            )
        return steps

    @property
    def fewest_steps(self) -> int:
        """The smallest number of steps with a table."""
        return min(self._spec.schedules[self._spec.schedule])

    def steps_within(self, most: float) -> int:
        """The largest number of steps with a table that is at most `most`; 0 if there is none."""
        available = self._spec.schedules[self._spec.schedule]
        return max((n for n in available if n <= most), default=0)

    def denoise(
        self, condition: Condition, *, steps: int, seed: int, schedule: str | None = None
    ) -> Floats:
        """The clean latent.

        Parameters
        ----------
        condition : Condition
        steps : int
            One that `check_steps` accepts.
        seed : int
            At least 0.
        schedule : str, optional
            By default the bundle's.

        Returns
        -------
        latent : (1, 4, h, w) float32

        Raises
        ------
        ScansideError
            The latent becomes infinite or NaN; the message says at which step.
        """
        rng = np.random.Generator(np.random.Philox(seed))
        name = f"{schedule or self._spec.schedule}_{steps}"
        x = self._start(condition.latent, rng) * np.float32(self._arrays[f"{name}_start"])
        conditions = self._guided(condition.states, self._class_labels(condition.clip, rng))
        last = np.zeros_like(x)
        for step, row in enumerate(self._arrays[name].tolist()):
            timestep, in_scale, x0_x, x0_out, x_x, x0_now, x0_last, noise = row
            out = self._predict(in_scale * x, timestep, conditions)
            guess = x0_x * x + x0_out * out
            x = x_x * x + x0_now * guess + x0_last * last
            if noise:
                x += noise * rng.standard_normal(x.shape, np.float32)
            if not np.isfinite(x).all():
                raise ScansideError(
                    f"the latent is not finite after step {step + 1} of {steps}; check the "
                    "volume's units, and the bundle with scanside verify"
                )
            last = guess
        return x

    def _start(self, latent: Floats, rng: np.random.Generator) -> Floats:
        beta = self._spec.beta
        noise: Floats = rng.standard_normal(latent.shape, np.float32)
        return np.add((1 - beta) * latent, beta * noise, dtype=np.float32)

    def _class_labels(self, clip: Floats, rng: np.random.Generator) -> Floats:
        """(1, 2 D): the noised CLIP vector and the embedding of the noise level."""
        scale, shift, noise, level = (self._arrays[name] for name in _CONDITIONING)
        normal = rng.standard_normal(clip.shape, np.float32)
        noised = clip * scale + shift + noise * normal
        return np.concatenate([noised, level[None]], axis=1).astype(np.float32)

    def _guided(self, states: Floats, labels: Floats) -> dict[str, Floats]:
        if self._spec.guidance > 1:
            states = np.concatenate([self._empty, states])
            labels = np.concatenate([np.zeros_like(labels), labels])
        return {"states": states, "class_labels": labels}

    def _predict(self, x: Floats, timestep: float, conditions: Mapping[str, Floats]) -> Floats:
        guidance = self._spec.guidance
        feeds = {
            "sample": np.concatenate([x, x]) if guidance > 1 else x,
            "timestep": np.array([timestep], self._timestep_type),
            **conditions,
        }
        out: Floats = self._unet.run(feeds)["out"]
        return np.add(out[:1], guidance * (out[1:] - out[:1])) if guidance > 1 else out

    def decode(self, latent: Floats) -> Floats:
        """The picture of a latent, (1, 3, H, W) float32 in [-1, 1] up to overshoot."""
        return self._vae.run({"latent": latent})["image"]


def to_pixels(image: Floats) -> NDArray[np.uint8]:
    """(1, 3, H, W) in [-1, 1] to (H, W, 3) uint8, rounded as diffusers does."""
    pixels = np.clip(image[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1) * 255
    return pixels.round().astype(np.uint8)
