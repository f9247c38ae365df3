"""What a simulated run is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.motion import framewise_displacement
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation

SMALL = Simulation(shape=(12, 14, 10), volumes=120, motion_mm=3.0)


def displacement_mm(run: SimulatedRun) -> float:
    """Mean from one volume to the next."""
    motion = run.motion * ([1.0] * 3 + [np.pi / 180] * 3)
    steps = zip(motion[:-1], motion[1:], strict=True)
    return float(np.mean([framewise_displacement(a, b) for a, b in steps]))


def test_a_head_with_inertia_goes_as_far_without_jerks():
    jerky, slow = SimulatedRun(SMALL), SimulatedRun(replace(SMALL, inertia=20))
    for run in (jerky, slow):
        assert np.abs(run.motion).max() == pytest.approx(3.0)
        assert not run.motion[0].any()
    assert displacement_mm(slow) < 0.4 * displacement_mm(jerky)


def test_given_trials_are_played_in_turn():
    shipped = SimulatedRun(SMALL)
    given = shipped.truths[:2]
    run = SimulatedRun(SMALL, given)
    assert [truth.name for truth in run.truths[:4]] == [t.name for t in (*given, *given)]
    assert [s.onset_s for s in run.stimuli] == [s.onset_s for s in shipped.stimuli]


def test_a_run_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="'inertia' 1; got"):
        Simulation(inertia=0)
