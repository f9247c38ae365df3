"""Schedules for the runtime, read off diffusers' own schedulers.

A sampler is linear in its start, the model's outputs and its noise. So the scheduler is run once on
unit vectors: as start the first, as output of step k the (k+1)-th. What it returns are coefficients
(`scanside.runtime.schedule`), and no formula of a sampler is written down a second time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from ..runtime.errors import CheckpointError
from ..runtime.schedule import Floats, Schedule

STEPS = (1, 2, 4, 8, 10, 20, 50)

_LCM_STEPS = ("original_inference_steps", 50)
"""LCM's option, and diffusers' default for it."""
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_KNOWN = {kind.name for kind in KarrasDiffusionSchedulers} | {"LCMScheduler"}
"""Classes of diffusers whose configuration means the same: noise by betas over timesteps."""


class Sampler(NamedTuple):
    """A diffusers scheduler with what distinguishes it from the checkpoint's configuration."""

    scheduler: Any
    options: Mapping[str, Any]


SCHEDULES: dict[str, Sampler] = {
    "ddim": Sampler(DDIMScheduler, {}),
    "euler": Sampler(EulerDiscreteScheduler, {}),
    # few steps of a distilled model begin at the noisiest timestep
    "turbo": Sampler(EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "dpmpp_2m": Sampler(
        DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}
    ),
    "unipc": Sampler(UniPCMultistepScheduler, {}),
    "lcm": Sampler(LCMScheduler, {}),
}


def make_scheduler(name: str, config: Mapping[str, Any], steps: int) -> Any:
    """A diffusers scheduler, set to a number of steps.

    Parameters
    ----------
    name : str
        One of `SCHEDULES`.
    config : mapping
        The checkpoint's scheduler configuration: betas, spacing, prediction type.
    steps : int
    """
    sampler = SCHEDULES[name]
    options = dict(sampler.options)
    if sampler.scheduler is LCMScheduler:
        # it takes its steps from a coarser schedule, which must not be the coarser of the two
        options["original_inference_steps"] = max(steps, config.get(_LCM_STEPS[0], _LCM_STEPS[1]))
    with numpy_warning_ignored():
        scheduler: Any = sampler.scheduler.from_config({**config, **options})
        scheduler.set_timesteps(steps)
    return scheduler


def start_scale(scheduler: Any, begin: int) -> float:
    """What a start of unit variance is multiplied by before step `begin`, which it also sets."""
    if begin == 0:
        return float(scheduler.init_noise_sigma)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if isinstance(scheduler, EulerDiscreteScheduler):
        return math.sqrt(float(scheduler.sigmas[begin]) ** 2 + 1)
    return 1.0


@contextmanager
def numpy_warning_ignored() -> Generator[None]:
    """Where diffusers hands torch tensors to numpy in a way that numpy 2 deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def make_schedule(name: str, config: Mapping[str, Any], steps: int, skip: float = 0.0) -> Schedule:
    """Coefficients of one sampler at one number of steps.

    Parameters
    ----------
    name, config
        As for `make_scheduler`.
    steps : int
        Evaluations of the U-Net.
    skip : float
        Share of the way from noise to picture that is left out, 0 to below 1: as with an
        image-to-image pipeline of strength 1 - skip, denoising starts at a later timestep.

    Raises
    ------
    CheckpointError
        The latent is not finite.
    """
    planned = math.ceil(steps / (1 - skip) - 1e-9)
    scheduler = make_scheduler(name, config, planned)
    timesteps = scheduler.timesteps[planned - steps :]
    draws_noise = isinstance(scheduler, LCMScheduler)
    unit = torch.eye(1 + steps * (2 if draws_noise else 1), dtype=torch.float64)
    x = unit[:1] * start_scale(scheduler, planned - steps)
    inputs, guesses = [], []
    with numpy_warning_ignored():
        for k, t in enumerate(timesteps):
            inputs.append(scheduler.scale_model_input(x, t))
            after = scheduler.step(unit[1 + k : 2 + k], t, x)
            guesses.append(_guess(scheduler, after))
            x = after.prev_sample
            if draws_noise:
                noise = unit[1 + steps + k : 2 + steps + k]
                x = _with_noise(scheduler, timesteps[k + 1 :], after.denoised, noise)
    if not torch.isfinite(torch.cat([*inputs, *guesses, x])).all():
        raise CheckpointError(
            f"diffusion/scheduler: {name} with prediction_type "
            f"{scheduler.config.prediction_type!r} gives no finite latent at {steps} steps; "
            "a start at pure noise needs v_prediction or sample"
        )
    return Schedule(
        timesteps=timesteps.float().numpy(),
        inputs=_floats(torch.cat(inputs)),
        guesses=_floats(torch.cat(guesses)),
        final=_floats(x[0]),
    )


def _guess(scheduler: Any, after: Any) -> Tensor:
    """The clean latent as the sampler guesses it after a step."""
    for name in ("pred_original_sample", "denoised"):
        if hasattr(after, name):
            return getattr(after, name)
    return scheduler.model_outputs[-1]


def _with_noise(scheduler: Any, later: Tensor, denoised: Tensor, noise: Tensor) -> Tensor:
    """LCM's step, with a unit vector in the place of the noise that it draws."""
    if not len(later):
        return denoised
    alpha = scheduler.alphas_cumprod[later[0]].double()
    return alpha.sqrt() * denoised + (1 - alpha).sqrt() * noise


def _floats(values: Tensor) -> Floats:
    return values.float().numpy()


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint's scheduler that no table can stand for.

    Raises
    ------
    CheckpointError
        A scheduler of another kind, a prediction that it does not know, or samples that it clips or
        thresholds, which is not linear.
    """
    kind = config.get("_class_name", "DDIMScheduler")
    if kind not in _KNOWN:
        raise CheckpointError(
            f"diffusion/scheduler is a {kind}, which no Stable unCLIP is sampled with; expected "
            "one of diffusers' schedulers by betas, for example DDIMScheduler"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise CheckpointError(
            f"diffusion/scheduler has prediction_type {prediction!r}; expected one of "
            f"{', '.join(_PREDICTIONS)}"
        )
    for option in ("thresholding", "clip_sample"):
        if config.get(option, False):
            raise CheckpointError(
                f"diffusion/scheduler sets {option}=true; a latent model needs {option}=false"
            )


def schedule_tables(config: Mapping[str, Any], skip: float = 0.0) -> dict[str, Floats]:
    """All schedules of a bundle, packed, under the names of `diffusion.npz`: `<name>_<steps>`.

    Raises
    ------
    CheckpointError
        As from `check_scheduler`; or a latent that is not finite.
    """
    check_scheduler(config)
    return {
        f"{name}_{steps}": make_schedule(name, config, steps, skip).pack()
        for name in SCHEDULES
        for steps in STEPS
    }
