"""One attempt at a run: what its betas depend on, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scanside.runtime import Decoder
from scanside.runtime.realtime.attempt import Attempt
from scanside.runtime.realtime.beta_scale import BetaScale
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.run_setup import RunRequest, make_intake
from scanside.runtime.realtime.session_config import SessionConfig
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation

SIMULATION = Simulation(
    shape=(22, 26, 20), voxel_mm=(7.0, 7.0, 7.0), volumes=40, gap_s=11.0, motion_mm=0.5
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder.open("reference", threads=1, warm=False) as opened:
        yield opened


def values(
    decoder: Decoder, run: SimulatedRun, frames: list[Frame]
) -> dict[tuple[int, int], np.ndarray]:
    """Normalised activity of each trial and revision."""
    config = SessionConfig(tr_s=SIMULATION.tr_s, volumes=len(frames))
    request = RunRequest(source=".", events=".", out=Path("."), threads=1)
    intake = make_intake(decoder, request, config)
    shape = decoder.stages.preprocessor.geometry.shape
    scale = BetaScale.of_bundle(decoder.bundle, intake.elements, shape)
    attempt = Attempt(0, config, intake, scale)
    attempt.add(run.stimuli)
    found: dict[tuple[int, int], np.ndarray] = {}
    for frame in frames:
        attempt.take(frame, frame.number, None)
        for due in attempt.schedule.reach(frame.number):
            found[due.trial, due.revision] = attempt.close(due).values
    return found


def test_the_last_digit_of_an_affine_changes_no_beta(decoder: Decoder):
    """The simulated grid and the model's fit together, so that voxels lie on the borders where a
    choice is made; and the noise of the head has components of nearly the same energy."""
    run = SimulatedRun(SIMULATION)
    frames = [
        Frame(number=n, data=data, affine=run.affine, series="5", arrived_s=0.0)
        for n, data in enumerate(run.volumes())
    ]
    nudge = np.zeros((4, 4))
    nudge[:3] = np.random.default_rng(0).normal(0, 1e-10, (3, 4))
    plain = values(decoder, run, frames)
    nudged = values(decoder, run, [replace(f, affine=f.affine + nudge) for f in frames])
    assert plain.keys() == nudged.keys()
    assert len(plain) >= 7
    for key, one in plain.items():
        # float32 tokens of a few thousand, of which a beta is a hundredth
        assert np.std(nudged[key] - one) < 1e-4 * np.std(one), key
