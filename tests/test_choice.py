"""Which of several measured options an export keeps."""

from __future__ import annotations

import numpy as np
import pytest

from scanside.export.choice import Bounds, Measured, Option, choose, front
from scanside.runtime.errors import InputError

RNG = np.random.default_rng(0)
TRIALS = RNG.uniform(0.3, 0.7, 100)


def row(steps: int, p50: float, score: float, spread: float = 0.0, p95: float | None = None):
    trials = TRIALS - TRIALS.mean() + score
    trials = trials + spread * (noise := RNG.standard_normal(100)) - spread * noise.mean()
    return Measured(
        option=Option(precision="fp32", quantize="q8_0", steps=steps),
        trial_scores=trials,
        scores={"caption": score},
        latency_ms={"runs": 20, "p50": p50, "p95": 1.1 * p50 if p95 is None else p95, "max": 500.0},
        memory_mib=100.0,
        size_mib=20.0,
    )


def test_the_front_holds_what_no_other_option_beats():
    rows = [row(8, 90, 0.7), row(1, 50, 0.5), row(2, 60, 0.4), row(4, 70, 0.6), row(20, 99, 0.7)]
    assert [r.option.steps for r in front(rows)] == [1, 4, 8]


def test_with_a_target_latency_the_best_score_that_is_fast_enough_is_taken():
    rows = [row(1, 50, 0.5), row(4, 70, 0.6), row(8, 90, 0.7)]
    assert choose(rows, Bounds(target_latency_ms=80)).option.steps == 4
    assert choose(rows, Bounds(target_latency_ms=200)).option.steps == 8
    # what matters is that 95 of 100 volumes are in time, not half of them
    late = [row(1, 50, 0.5), row(4, 70, 0.6, p95=81)]
    assert choose(late, Bounds(target_latency_ms=80)).option.steps == 1


def test_with_only_a_least_score_the_fastest_that_reaches_it_is_taken():
    rows = [row(8, 90, 0.7), row(4, 70, 0.6), row(1, 50, 0.5)]
    assert choose(rows, Bounds(min_score=0.55)).option.steps == 4


def test_an_advantage_that_cannot_be_told_from_chance_costs_no_time():
    rows = [row(1, 50, 0.600, spread=0.1), row(8, 90, 0.601, spread=0.1)]
    assert choose(rows, Bounds(target_latency_ms=200)).option.steps == 1
    # the same small advantage, but the same in every trial
    rows = [row(1, 50, 0.600), row(8, 90, 0.601)]
    assert choose(rows, Bounds(target_latency_ms=200)).option.steps == 8


@pytest.mark.parametrize(
    ("bounds", "sentence"),
    [
        (Bounds(target_latency_ms=40), "none of 2 options answers 95 of 100 volumes within 40 ms;"),
        (Bounds(min_score=0.9), "none of 2 options scores at least 0.9;"),
        (Bounds(target_latency_ms=60, min_score=0.65), "within 60 ms and scores at least 0.65;"),
    ],
)
def test_bounds_that_nothing_meets_name_the_nearest_option(bounds: Bounds, sentence: str):
    with pytest.raises(InputError) as caught:
        choose([row(1, 50, 0.6), row(8, 90, 0.7)], bounds)
    assert sentence in str(caught.value)
    nearest = "8 steps, takes 99.0 ms" if bounds.target_latency_ms is None else "1 step, takes 55.0"
    assert f"the nearest, fp32, q8_0, {nearest}" in str(caught.value)


@pytest.mark.parametrize("name", ["target_latency_ms", "min_score"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bounds_must_make_sense(name: str, value: float):
    with pytest.raises(InputError, match=f"'{name}' must be above 0"):
        Bounds(**{name: value})


def test_a_row_of_the_table_says_everything():
    told = row(4, 70, 0.6).as_dict()
    assert told["precision"] == "fp32"
    assert told["latency_ms"] == {"runs": 20, "p50": 70, "p95": 77.0, "max": 500.0}
    assert (told["score"], told["memory_mib"], told["size_mib"]) == (0.6, 100.0, 20.0)
