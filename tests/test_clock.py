"""One clock for a decode, and costs that are learnt."""

import math
import time

import pytest

from scanside.runtime.clock import Clock, Costs


def test_an_unmeasured_stage_costs_nothing_and_a_measured_one_a_little_more_than_it_did():
    costs = Costs()
    assert costs.of("step") == 0
    costs.learn("step", 1.0)
    assert 1.0 < costs.of("step") < 1.3


def test_costs_follow_what_is_measured():
    costs = Costs()
    for seconds in (1.0, *[3.0] * 20):
        costs.learn("step", seconds)
    assert costs.of("step") / Costs.of(_learnt(3.0), "step") == pytest.approx(1, rel=1e-3)


def _learnt(seconds: float) -> Costs:
    costs = Costs()
    costs.learn("step", seconds)
    return costs


def test_what_happens_several_times_is_divided():
    costs = Costs()
    with costs.measured("step", per=4):
        time.sleep(0.04)
    assert 0.01 <= costs.of("step") < 0.04


def test_without_a_deadline_time_is_endless():
    clock = Clock(None)
    assert clock.left_s == math.inf
    assert clock.deadline_at is None


def test_a_deadline_counts_from_the_beginning():
    clock = Clock(10)
    assert 9 < clock.left_s <= 10
    assert Clock(1e-9).left_s < 0


def test_stages_add_up_and_marks_stay():
    clock = Clock(None)
    for _ in range(2):
        with clock.stage("vae"):
            time.sleep(0.005)
    clock.mark("first")
    first = clock.latency_ms["first"]
    clock.mark("first")
    assert clock.latency_ms["vae"] >= 10
    assert clock.latency_ms["first"] == first >= clock.latency_ms["vae"]
