"""Framewise displacement, DVARS and spikes, on figures that can be checked by hand."""

import numpy as np
import pytest

from scanside.runtime.realtime.motion import (
    MotionMonitor,
    SpikeLimits,
    dvars_percent,
    framewise_displacement,
)

STILL = np.zeros(6)


def test_displacement_adds_shifts_and_arcs():
    before = np.array([1, 1, 1, 0.1, 0.1, 0.1])
    after = before + np.array([0.2, -0.3, 0, 0.001, 0, -0.002])
    assert framewise_displacement(before, after) == pytest.approx(0.5 + 50 * 0.003)


def test_dvars_is_the_root_mean_square_change_in_percent():
    before, after = np.full(4, 200.0), np.array([202.0, 198.0, 202.0, 198.0])
    assert dvars_percent(before, after, 200.0) == pytest.approx(1.0)


def test_a_jerk_is_a_spike_and_what_follows_it_is_not():
    monitor, rng = MotionMonitor(), np.random.default_rng(0)
    jerk = np.array([0.4, 0, 0, 0, 0.004, 0])
    brain = rng.normal(1000, 100, 500)
    seen = [
        monitor.see(jerk if frame > 20 else STILL, brain + rng.normal(0, 5, 500))
        for frame in range(30)
    ]
    assert [frame for frame, movement in enumerate(seen) if movement.spike] == [21]
    assert seen[0].displacement_mm == seen[0].dvars == 0
    assert seen[21].displacement_mm == pytest.approx(0.6)
    assert seen[5].dvars == pytest.approx(np.sqrt(2) * 0.5, rel=0.1)


def test_a_bright_flash_is_a_spike_though_nothing_moves():
    monitor, rng = MotionMonitor(), np.random.default_rng(0)
    seen = []
    for frame in range(30):
        values = rng.normal(0, 5, 500) + (1030 if frame == 20 else 1000)
        seen.append(monitor.see(STILL, values).spike)
    assert [frame for frame, spike in enumerate(seen) if spike] == [20, 21]  # there, and back


def test_dvars_says_nothing_before_it_knows_the_run():
    monitor = MotionMonitor(SpikeLimits(least=5))
    values = [0.0, 1, 5, 1, 9, 1, 1.1, 1, 30]
    seen = [monitor.see(STILL, np.full(3, 100 + value)).spike for value in values]
    assert seen == [False] * 8 + [True]


def test_the_callers_array_may_be_used_again():
    monitor, values = MotionMonitor(), np.full(10, 100.0, np.float32)
    monitor.see(STILL, values)
    values += 1
    assert monitor.see(STILL, values).dvars == pytest.approx(1.0)
