"""The drift beside nilearn's."""

import numpy as np
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.drift import Drift


@pytest.mark.parametrize(("volumes", "tr_s"), [(200, 1.6), (101, 0.8), (20, 2.0)])
def test_drift_of_a_whole_run_equals_nilearn(volumes: int, tr_s: float):
    times = np.arange(volumes) * tr_s
    theirs = make_first_level_design_matrix(times, drift_model="cosine").to_numpy()
    drift = Drift(volumes=volumes, tr_s=tr_s)
    ours = np.array([drift.row(frame) for frame in range(volumes)])
    assert drift.columns == theirs.shape[1]
    assert ours[:, [*range(1, drift.columns), 0]] == pytest.approx(theirs, abs=1e-12)


def test_drift_goes_on_beyond_the_plan():
    drift = Drift(volumes=100, tr_s=2.0)
    assert np.abs(drift.row(101) - drift.row(100)).max() < 0.02
    assert drift.row(500).shape == (drift.columns,)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"volumes": 1}, "at least 2 volumes; got 1"),
        ({"tr_s": 0.0}, "positive number of seconds; got 0.0"),
        ({"tr_s": float("nan")}, "positive number of seconds"),
        ({"high_pass_hz": 0.3}, "between 0 and 0.25 Hz"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change: dict[str, float], sentence: str):
    with pytest.raises(InputError, match=sentence):
        Drift(**({"volumes": 100, "tr_s": 2.0} | change))
