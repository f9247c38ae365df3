"""Denoising schedules as tables of numbers, so that the runtime needs no scheduler library.

Every sampler here is affine in what it has at hand. With x the latent, one step is

    out = unet(in_scale * x, timestep) x0  = x0_x * x + x0_out * out
    the model's guess of the clean latent x  <- x_x * x + x0_now * x0 + x0_last * (x0 of the last
    step) + noise * normal

and a table holds one row of `COLUMNS` per step. DDIM: https://arxiv.org/abs/2010.02502, eq. 12 with
eta 0. DPM-Solver++ 2M: https://arxiv.org/abs/2211.01095, algorithm 2. Timesteps and alphas come
from diffusers' own schedulers, made from the checkpoint's configuration; only the arithmetic of the
step is ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from numpy.typing import NDArray

from ..runtime.errors import CheckpointError

COLUMNS = ("timestep", "in_scale", "x0_x", "x0_out", "x", "x0_now", "x0_last", "noise")
STEPS = (1, 2, 4, 8, 10, 20, 50)

Table = NDArray[np.float64]


def clean_guess(alpha_bar: float, prediction: str) -> tuple[float, float]:
    """Coefficients (x0_x, x0_out) that turn the model's output into the clean latent.

    Parameters
    ----------
    alpha_bar : float
        Share of signal variance at this timestep, in (0, 1); 0 only with "v_prediction" or
        "sample".
    prediction : {"epsilon", "v_prediction", "sample"}
        What the U-Net was trained to predict.

    Raises
    ------
    CheckpointError
        Another prediction type, or pure noise with epsilon, from which no clean latent follows.
    """
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    if prediction == "v_prediction":
        return signal, -noise
    if prediction == "sample":
        return 0.0, 1.0
    if prediction == "epsilon" and signal > 0:
        return 1 / signal, -noise / signal
    raise CheckpointError(
        f"diffusion/scheduler: prediction_type {prediction!r} at signal level {signal:.3g} "
        "gives no clean latent; expected epsilon, v_prediction or sample"
    )


def _scheduler(scheduler_class: Any, steps: int, config: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        # diffusers hands torch tensors to numpy in a way that numpy 2 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler = scheduler_class.from_config(config)
        scheduler.set_timesteps(steps)
    return scheduler


def ddim_table(config: Mapping[str, Any], steps: int) -> Table:
    """DDIM with eta 0.

    Parameters
    ----------
    config : mapping
        A diffusers scheduler configuration (betas, spacing, prediction type).
    steps : int
        Denoising steps.

    Returns
    -------
    table : (steps, 8) float64
        One row per step, columns as in `COLUMNS`.
    """
    scheduler = _scheduler(DDIMScheduler, steps, dict(config))
    alphas = scheduler.alphas_cumprod.double().numpy()
    rows: list[tuple[float, ...]] = []
    for t in scheduler.timesteps.tolist():
        before = t - scheduler.config.num_train_timesteps // steps
        now = float(alphas[t])
        then = float(alphas[before]) if before >= 0 else float(scheduler.final_alpha_cumprod)
        keep = math.sqrt((1 - then) / (1 - now))
        guess = clean_guess(now, scheduler.config.prediction_type)
        rows.append((t, 1.0, *guess, keep, math.sqrt(then) - keep * math.sqrt(now), 0.0, 0.0))
    return np.array(rows, np.float64)


def dpmpp_2m_table(config: Mapping[str, Any], steps: int) -> Table:
    """DPM-Solver++ of second order, multistep, midpoint; first order at the first and at the last
    step.

    Parameters and result are those of `ddim_table`.
    """
    solver = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
    options = {**config, **solver, "final_sigmas_type": "zero"}
    scheduler = _scheduler(DPMSolverMultistepScheduler, steps, options)
    # sigma here is noise over signal; lambda = -log sigma
    sigmas = [float(s) for s in scheduler.sigmas.double()]
    rows: list[tuple[float, ...]] = []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        now, then = sigmas[i], sigmas[i + 1]
        signal_now, signal_then = 1 / math.hypot(1, now), 1 / math.hypot(1, then)
        keep = (then * signal_then) / (now * signal_now)
        # -alpha (exp(-h) - 1) with exp(-h) = then / now
        gain = signal_then * (1 - then / now)
        last = 0.0
        if 0 < i < steps - 1:
            ratio = math.log(sigmas[i - 1] / now) / math.log(now / then)
            last = -gain * 0.5 / ratio
        guess = clean_guess(signal_now**2, scheduler.config.prediction_type)
        rows.append((t, 1.0, *guess, keep, gain - last, last, 0.0))
    return np.array(rows, np.float64)


SCHEDULES: dict[str, Callable[[Mapping[str, Any], int], Table]] = {
    "ddim": ddim_table,
    "dpmpp_2m": dpmpp_2m_table,
}


def schedule_tables(config: Mapping[str, Any]) -> dict[str, Table]:
    """All tables of a bundle, under the names of `diffusion.npz`.

    Returns
    -------
    tables : dict
        `<schedule>_<steps>` (steps, 8) float64, and `<schedule>_<steps>_start`, the scalar by which
        the start is multiplied (1 for both schedules: their start has unit variance).

    Raises
    ------
    CheckpointError
        The scheduler clips or thresholds its samples, which no affine table can express.
    """
    for option in ("thresholding", "clip_sample"):
        if config.get(option, False):
            raise CheckpointError(
                f"diffusion/scheduler sets {option}=true; a latent model needs {option}=false"
            )
    tables: dict[str, Table] = {}
    for name, make in SCHEDULES.items():
        for steps in STEPS:
            tables[f"{name}_{steps}"] = make(config, steps)
            tables[f"{name}_{steps}_start"] = np.array(1.0)
    return tables
