"""What `scanside bench` concludes from times: percentiles, intervals, ratios, noise, load."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanside.runtime.bench import Neighbours, compared, load, noise_of, summarise_ms
from scanside.runtime.bench.ratios import LEAST_ROUNDS
from scanside.runtime.bench.report import sparkline
from scanside.runtime.bench.summary import BINS, LEAST_RUNS, interval_ranks


def times(runs: int, seed: int = 0, median: float = 0.1) -> np.ndarray:
    return median * np.random.default_rng(seed).lognormal(sigma=0.2, size=runs)


@pytest.mark.parametrize(("percentile", "least"), LEAST_RUNS.items())
def test_a_percentile_is_told_from_so_many_runs_on_and_else_how_many_it_needs(
    percentile: str, least: int
):
    enough, few = summarise_ms(times(least)), summarise_ms(times(least - 1))
    exact = np.percentile(times(least) * 1e3, float(percentile[1:]))
    assert enough[percentile] == pytest.approx(exact, abs=1e-3)
    assert percentile not in enough.get("needs", {})
    assert percentile not in few
    assert few["needs"][percentile] == least


@given(st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=200))
def test_a_histogram_holds_every_run_between_min_and_max(seconds: list[float]):
    summary = summarise_ms(seconds)
    shape = summary["histogram"]
    assert sum(shape["counts"]) == len(seconds) == summary["runs"]
    assert (shape["from"], shape["to"]) == (summary["min"], summary["max"])
    assert len(shape["counts"]) in (1, BINS)


@pytest.mark.parametrize(("runs", "share"), [(6, 0.5), (60, 0.5), (200, 0.95), (500, 0.99)])
def test_intervals_hold_the_true_quantile_in_95_percent_of_cases(runs: int, share: float):
    ranks = interval_ranks(runs, share)
    assert ranks is not None
    drawn = np.sort(np.random.default_rng(1).uniform(size=(4000, runs)), axis=1)
    held = np.mean((drawn[:, ranks[0]] <= share) & (share <= drawn[:, ranks[1]]))
    # 4000 draws: a standard deviation of 0.35 %; the ranks are whole numbers, so at least 95 %
    assert held > 0.94
    narrower = (ranks[0] + 1, ranks[1] - 1)
    still = np.mean((drawn[:, narrower[0]] <= share) & (share <= drawn[:, narrower[1]]))
    assert still < 0.96


def test_too_few_runs_have_no_interval():
    assert interval_ranks(5, 0.5) is None
    assert interval_ranks(100, 0.99) is None
    assert LEAST_ROUNDS == 6


def test_a_difference_beyond_the_noise_is_told_with_its_interval():
    once, again, slow = times(200, 1), times(200, 2), 2 * times(200, 3)
    noise = noise_of(once, again)
    assert noise is not None
    ratio = compared(slow, once, noise)
    assert ratio is not None
    assert ratio.low < 2.0 < ratio.high
    assert ratio.as_dict()["ratio"] == pytest.approx(2.0, rel=0.1)


def test_a_ratio_smaller_than_the_noise_is_refused():
    once, again = times(100, 1), 1.3 * times(100, 1)  # the same variant, 30 % apart
    noise = noise_of(once, again)
    assert noise is not None
    assert noise.factor == pytest.approx(1.3)
    ratio = compared(1.2 * times(100, 1), once, noise)
    assert ratio is not None
    assert ratio.median is None
    assert "ratio" not in ratio.as_dict()
    assert "within the noise" in str(ratio)


def test_the_inverse_ratio_has_the_inverse_interval():
    once, other = times(50, 1), 1.5 * times(50, 4)
    noise = noise_of(once, times(50, 5))
    there, back = compared(other, once, noise), compared(once, other, noise)
    assert there is not None
    assert back is not None
    assert there.low == pytest.approx(1 / back.high)
    assert there.high == pytest.approx(1 / back.low)
    assert there.median == pytest.approx(1 / back.median)


def test_nothing_is_told_from_too_few_rounds_or_without_a_noise_check():
    assert noise_of(times(5), times(5)) is None
    assert compared(2 * times(5), times(5), noise_of(times(9), times(9, 1))) is None
    assert compared(2 * times(50), times(50), None) is None


@pytest.mark.parametrize(("taken", "marked"), [(0.01, False), (0.09, False), (0.5, True)])
def test_what_others_take_of_two_cores_marks_a_figure(taken: float, marked: bool):
    neighbours = Neighbours()
    neighbours.cores, neighbours.taken = 2, taken
    assert neighbours.under_load is marked
    assert neighbours.as_dict() == {"others_cores": taken, "under_load": marked}


def test_what_this_process_computes_is_no_load_of_others(monkeypatch: pytest.MonkeyPatch):
    """Two seconds in which all cores worked for 1.5 s, 1.2 s of it in this process."""
    readings = iter([(10.0, 500.0, 7.0), (12.0, 501.5, 8.2)])
    monkeypatch.setattr(load, "_now", lambda: next(readings))
    with Neighbours() as neighbours:
        pass
    assert neighbours.taken == pytest.approx(0.15)


def test_work_of_this_process_is_in_both_of_the_systems_counts():
    if not load._STAT.exists():
        pytest.skip("this system has no /proc/stat")
    _, busy, own = load._now()
    while load._now()[2] - own < 0.3:
        pass
    # the system counts in ticks of 10 ms, and on its own schedule
    assert load._now()[1] - busy > 0.2


def test_a_bin_that_holds_anything_has_a_bar():
    assert sparkline([0, 1, 1000]) == " ▁█"
