"""The schedules against diffusers' own schedulers, driven by the same model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scanside.export.schedules import (
    SCHEDULES,
    STEPS,
    make_schedule,
    make_scheduler,
    schedule_tables,
)
from scanside.runtime.errors import CheckpointError
from scanside.runtime.schedule import Schedule

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
SHAPE = (1, 4, 8, 8)


def model(x: np.ndarray, timestep: float) -> np.ndarray:
    """Something that is not linear, in the place of a U-Net."""
    return np.tanh(1.3 * x) + 0.1 * np.cos(timestep)


def noise(step: int) -> np.ndarray:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(step)).numpy()


def by_diffusers(
    scheduler: Any, start: np.ndarray, begin: int = 0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The latent at the end, and the guesses on the way where the scheduler tells them."""
    x, guesses = torch.from_numpy(start), []
    for k, t in enumerate(scheduler.timesteps[begin:]):
        out = torch.from_numpy(model(scheduler.scale_model_input(x, t).numpy(), float(t)))
        seeded = {"generator": torch.Generator().manual_seed(k)} if _draws(scheduler) else {}
        step = scheduler.step(out.float(), t, x.float(), **seeded)
        x = step.prev_sample
        if "pred_original_sample" in step:
            guesses.append(step.pred_original_sample.numpy())
    return x.numpy(), guesses


def _draws(scheduler: Any) -> bool:
    return type(scheduler).__name__ == "LCMScheduler"


def by_table(plan: Schedule, start: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    met = np.zeros((len(plan.final), start.size))
    met[0] = start.ravel()
    guesses = []
    for k in range(plan.steps):
        met[1 + k] = model(plan.inputs[k] @ met, float(plan.timesteps[k]))
        guesses.append((plan.guesses[k] @ met).reshape(SHAPE))
        if plan.draws_noise:
            met[1 + plan.steps + k] = noise(k).ravel()
    return (plan.final @ met).reshape(SHAPE), guesses


def test_packing_loses_nothing() -> None:
    plan = make_schedule("lcm", STABLE_DIFFUSION | {"prediction_type": "epsilon"}, 4)
    again = Schedule.unpack(plan.pack())
    for field in ("timesteps", "inputs", "guesses", "final"):
        np.testing.assert_array_equal(getattr(plan, field), getattr(again, field))
    with pytest.raises(ValueError, match="4 steps cannot have the shape"):
        Schedule.unpack(plan.pack()[:, 1:])


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_equals_diffusers(name: str, steps: int, prediction: str, spacing: str) -> None:
    config = STABLE_DIFFUSION | {"prediction_type": prediction, "timestep_spacing": spacing}
    start = np.random.default_rng(0).standard_normal(SHAPE)
    scheduler = make_scheduler(name, config, steps)
    expected, told = by_diffusers(scheduler, start * float(scheduler.init_noise_sigma))
    plan = Schedule.unpack(make_schedule(name, config, steps).pack())
    assert plan.timesteps.tolist() == scheduler.timesteps.tolist()
    found, guesses = by_table(plan, start)
    largest = np.abs(expected).max()
    # diffusers keeps its samples in float32
    np.testing.assert_allclose(found, expected, atol=5e-5 * largest)
    for guess, wanted in zip(guesses, told, strict=False):
        np.testing.assert_allclose(guess, wanted, atol=5e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_later_start_equals_diffusers_image_to_image(name: str) -> None:
    config = STABLE_DIFFUSION | {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    latent, fresh = np.random.default_rng(1).standard_normal((2, *SHAPE)).astype(np.float32)
    scheduler = make_scheduler(name, config, 10)
    begin = 4
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    time = scheduler.timesteps[begin : begin + 1]
    noised = scheduler.add_noise(torch.from_numpy(latent), torch.from_numpy(fresh), time).numpy()
    expected, _ = by_diffusers(scheduler, noised, begin)
    alpha = float(make_scheduler("ddim", config, 10).alphas_cumprod[int(time)])
    mixed = np.sqrt(alpha) * latent + np.sqrt(1 - alpha) * fresh
    plan = make_schedule(name, config, 6, skip=0.4)
    assert plan.timesteps[0] == time
    np.testing.assert_allclose(
        by_table(plan, mixed)[0], expected, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_late_start_of_many_steps_has_a_table(name: str) -> None:
    """LCM picks its steps from 50, which are fewer than those that are planned here."""
    config = STABLE_DIFFUSION | {"prediction_type": "v_prediction"}
    plan = make_schedule(name, config, 50, skip=0.5)
    assert plan.steps == 50
    assert np.isfinite(plan.final).all()
    assert (np.diff(plan.timesteps) < 0).all()


def test_a_multistep_checkpoint_of_another_order_still_gives_the_second() -> None:
    config = STABLE_DIFFUSION | {"prediction_type": "v_prediction"}
    plain, third = (
        make_schedule("dpmpp_2m", config | more, 20) for more in ({}, {"solver_order": 3})
    )
    np.testing.assert_array_equal(plain.final, third.final)


def test_zero_terminal_snr_starts_from_pure_noise() -> None:
    config = STABLE_DIFFUSION | {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    first = make_schedule("ddim", config, 4).guesses[0]
    assert (first[0], first[1]) == (0, -1)
    with pytest.raises(CheckpointError, match="epsilon.*no finite latent"):
        make_schedule("ddim", config | {"prediction_type": "epsilon"}, 4)


def test_every_schedule_and_step_count_has_a_table() -> None:
    tables = schedule_tables(STABLE_DIFFUSION | {"prediction_type": "v_prediction"})
    assert set(tables) == {f"{name}_{steps}" for name in SCHEDULES for steps in STEPS}
    assert all(Schedule.unpack(table).steps == int(k.split("_")[-1]) for k, table in tables.items())


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_a_scheduler_that_clips_is_refused(option: str) -> None:
    config = STABLE_DIFFUSION | {"prediction_type": "v_prediction", option: True}
    with pytest.raises(CheckpointError, match=f"{option}=true"):
        schedule_tables(config)
