"""The tables against diffusers' own schedulers, stepping the same model outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from scanside.export.schedules import COLUMNS, SCHEDULES, STEPS, schedule_tables
from scanside.runtime.errors import CheckpointError

# diffusers 0.39 hands torch tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STABLE_DIFFUSION: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def diffusers_scheduler(name: str, config: dict[str, Any]) -> Any:
    if name == "ddim":
        return DDIMScheduler.from_config(config)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")


def run_table(table: np.ndarray, x: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    last = np.zeros_like(x)
    for (_, in_scale, x0_x, x0_out, x_x, x0_now, x0_last, noise), out in zip(
        table, outputs, strict=True
    ):
        assert in_scale == 1
        assert noise == 0
        guess = x0_x * x + x0_out * out
        x = x_x * x + x0_now * guess + x0_last * last
        last = guess
    return x


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_table_equals_diffusers(name: str, steps: int, prediction: str, spacing: str) -> None:
    config = STABLE_DIFFUSION | {"prediction_type": prediction, "timestep_spacing": spacing}
    table = SCHEDULES[name](config, steps)
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((steps, 4, 8, 8))
    start = rng.standard_normal((4, 8, 8))
    scheduler = diffusers_scheduler(name, config)
    scheduler.set_timesteps(steps)
    assert table[:, 0].tolist() == scheduler.timesteps.tolist()
    x = torch.from_numpy(start)
    for t, out in zip(scheduler.timesteps, torch.from_numpy(outputs), strict=True):
        x = scheduler.step(out, t, x).prev_sample
    got = run_table(table, start, outputs)
    # diffusers keeps its alphas and sigmas in float32
    np.testing.assert_allclose(got, x.numpy(), atol=1e-5 * np.abs(got).max())


def test_zero_terminal_snr_starts_from_pure_noise() -> None:
    config = STABLE_DIFFUSION | {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    first = dict(zip(COLUMNS, SCHEDULES["ddim"](config, 4)[0], strict=True))
    assert (first["x0_x"], first["x0_out"]) == (0, -1)
    with pytest.raises(CheckpointError, match="epsilon.*no clean latent"):
        SCHEDULES["ddim"](config | {"prediction_type": "epsilon"}, 4)


def test_every_schedule_and_step_count_has_a_table() -> None:
    tables = schedule_tables(STABLE_DIFFUSION | {"prediction_type": "v_prediction"})
    for name in SCHEDULES:
        for steps in STEPS:
            assert tables[f"{name}_{steps}"].shape == (steps, len(COLUMNS))
            assert tables[f"{name}_{steps}_start"] == 1


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_a_scheduler_that_clips_is_refused(option: str) -> None:
    config = STABLE_DIFFUSION | {"prediction_type": "v_prediction", option: True}
    with pytest.raises(CheckpointError, match=f"{option}=true"):
        schedule_tables(config)
