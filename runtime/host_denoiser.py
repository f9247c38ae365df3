"""Denoising in NumPy around a graph that any engine runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .denoising import CONDITIONING, Condition, Floats, Step, finite_step
from .engines.engine import Engine
from .manifest import DiffusionSpec
from .schedule import Schedule


class HostDenoiser:
    """The U-Net step by step; everything between the steps is on the host.

    Parameters
    ----------
    unet : Engine
    spec : DiffusionSpec
    arrays : mapping
        clip_scale, clip_shift, clip_noise (1, D) and level_embedding (D,).
    times : mapping
        (1, E) float32 for every timestep.
    empty_states : (1, L, W) float32
        States of no text.
    """

    def __init__(
        self,
        unet: Engine,
        *,
        spec: DiffusionSpec,
        arrays: Mapping[str, NDArray[Any]],
        times: Mapping[float, Floats],
        empty_states: Floats,
    ) -> None:
        self._unet = unet
        self._spec, self._arrays = spec, arrays
        self._time, self._empty = times, empty_states

    def steps(
        self, condition: Condition, plan: Schedule, beta: float, rng: np.random.Generator
    ) -> Iterator[Step]:
        """Every step's clean latent; ScansideError where it is not finite."""
        steps = plan.steps
        shape = condition.latent.shape
        met = np.zeros((len(plan.final), condition.latent.size), np.float32)
        met[0] = self._start(condition.latent, beta, rng).ravel()
        conditions = self._guided(condition.states, self._class_labels(condition.clip, rng))
        for k in range(steps):
            x = (plan.inputs[k] @ met).reshape(shape)
            time = self._time[float(plan.timesteps[k])]
            met[1 + k] = self._predict(x, time, conditions).ravel()
            last = k == steps - 1
            with np.errstate(invalid="ignore", over="ignore"):  # is looked at right below
                latent = (plan.final if last else plan.guesses[k]) @ met
            yield finite_step(Step(k + 1, steps, latent.reshape(shape)))
            if plan.draws_noise and not last:
                met[1 + steps + k] = rng.standard_normal(met.shape[1], np.float32)

    def _start(self, latent: Floats, beta: float, rng: np.random.Generator) -> Floats:
        keep = 1 - beta if self._spec.mix == "literal" else math.sqrt(1 - beta**2)
        noise: Floats = rng.standard_normal(latent.shape, np.float32)
        return np.add(keep * latent, beta * noise, dtype=np.float32)

    def _class_labels(self, clip: Floats, rng: np.random.Generator) -> Floats:
        """(1, 2 D): the noised CLIP vector and the embedding of the noise level."""
        scale, shift, noise, level = (self._arrays[name] for name in CONDITIONING)
        normal = rng.standard_normal(clip.shape, np.float32)
        noised = clip * scale + shift + noise * normal
        return np.concatenate([noised, level[None]], axis=1).astype(np.float32)

    def _guided(self, states: Floats, labels: Floats) -> dict[str, Floats]:
        if self._spec.guidance > 1:
            states = np.concatenate([self._empty, states])
            labels = np.concatenate([np.zeros_like(labels), labels])
        return {"states": states, "class_labels": labels}

    def _predict(self, x: Floats, time: Floats, conditions: Mapping[str, Floats]) -> Floats:
        guidance = self._spec.guidance
        feeds = {
            "sample": np.concatenate([x, x]) if guidance > 1 else x,
            "time": time,
            **conditions,
        }
        out: Floats = self._unet.run(feeds)["out"]
        return np.add(out[:1], guidance * (out[1:] - out[:1])) if guidance > 1 else out

    def close(self) -> None:
        """Nothing to free: the engine belongs to whoever opened it."""
