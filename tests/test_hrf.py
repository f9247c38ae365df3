"""The response function and regressors beside nilearn's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import glover_hrf as nilearn_glover
from nilearn.glm.first_level import make_first_level_design_matrix

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.hrf import Response, glover_hrf


@pytest.mark.parametrize("tr_s", [0.8, 1.6, 2.0, 1.33])
def test_glover_equals_nilearn(tr_s: float):
    assert glover_hrf(tr_s) == pytest.approx(nilearn_glover(tr_s, 50), abs=1e-14)


@pytest.mark.filterwarnings("ignore:.*null duration")
@pytest.mark.parametrize("tr_s", [0.8, 1.5, 1.6, 2.0])
@pytest.mark.parametrize("duration_s", [0.0, 0.01, 3.0, 40.0])
def test_regressors_equal_nilearn(tr_s: float, duration_s: float):
    """At these TRs nilearn's fine grid, which begins 24 s before the run, holds every volume."""
    onsets = [-5.013, 0.507, 12.345, 60.111]
    times = np.arange(60) * tr_s
    events = pd.DataFrame({"onset": onsets, "duration": duration_s, "trial_type": "a"})
    theirs = make_first_level_design_matrix(times, events, drift_model=None)["a"].to_numpy()
    response = Response.glover(tr_s)
    ours = [sum(response.at(t, onset, duration_s) for onset in onsets) for t in times]
    assert np.ptp(theirs) > 0.001
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_a_given_response_is_sampled_and_summed():
    samples = np.array([0.0, 1.0, 2.0, 1.0])
    response = Response.given(samples, 0.5)
    assert response.length_s == 2.0
    single = [response.at(t, 1.0, 0.0) for t in np.arange(0, 4, 0.5)]
    assert single == [0, 0, 0, 1, 2, 1, 0, 0]
    double = [response.at(t, 1.0, 1.0) for t in np.arange(0, 4, 0.5)]
    assert double == [0, 0, 0, 1, 3, 3, 1, 0]


def test_an_onset_within_rounding_of_a_volume_lies_on_it():
    response = Response.given(np.array([1.0, 1.0]), 0.1)
    assert response.at(0.1 * 3, 0.3, 0.0) == response.at(0.3, 0.1 * 3, 0.0) == 1


@pytest.mark.parametrize(
    ("samples", "step_s", "sentence"),
    [
        (np.zeros((2, 2)), 0.1, "one row of at least 2 finite samples"),
        (np.array([1.0, np.nan]), 0.1, "one row of at least 2 finite samples"),
        (np.zeros(9), 0.1, "must not be zero"),
        (np.ones(9), 0.0, "its step in seconds positive"),
    ],
)
def test_a_response_that_cannot_be_used_is_refused(
    samples: np.ndarray, step_s: float, sentence: str
):
    with pytest.raises(InputError, match=sentence):
        Response.given(samples, step_s)
