"""The design of a trial, and its regressors as a run goes by."""

import numpy as np
import pandas as pd
from nilearn.glm.first_level import make_first_level_design_matrix

from scanside.runtime.realtime.design import Event, Regressors, lss_design
from scanside.runtime.realtime.drift import Drift
from scanside.runtime.realtime.hrf import Response

TR_S, VOLUMES = 1.6, 100
ONSETS = [5.01, 9.03, 40.5, 43.1, 100.0]


def regressors() -> Regressors:
    out = Regressors(Response.glover(TR_S), TR_S)
    for onset in reversed(ONSETS):
        out.add(Event(onset, 3.0))
    return out


def test_the_design_of_a_trial_equals_nilearns():
    trial = 2  # the middle one
    kinds = ["trial" if onset == ONSETS[2] else "others" for onset in ONSETS]
    events = pd.DataFrame({"onset": ONSETS, "duration": 3.0, "trial_type": kinds})
    theirs = make_first_level_design_matrix(np.arange(VOLUMES) * TR_S, events)
    ours = lss_design(regressors(), trial, range(VOLUMES), Drift(volumes=VOLUMES, tr_s=TR_S))
    names = ["trial", "others", "constant", *(c for c in theirs if c.startswith("drift"))]
    assert sorted(names) == sorted(theirs.columns)
    np.testing.assert_allclose(ours, theirs[names], atol=1e-9)


def test_nuisance_columns_come_last():
    nuisance = np.arange(VOLUMES * 2.0).reshape(VOLUMES, 2)
    drift = Drift(volumes=VOLUMES, tr_s=TR_S)
    design = lss_design(regressors(), 0, range(VOLUMES), drift, nuisance)
    assert (design[:, -2:] == nuisance).all()


def test_regressors_passed_by_leave_the_sum_as_it_is():
    whole, passing = regressors(), regressors()
    whole.reach(VOLUMES)
    begun: list[int] = []
    for frame in range(VOLUMES):
        begun += passing.reach(frame)
        passing.pass_by(frame - 3)
        for open_frame in range(max(frame - 3, 0), frame + 1):
            assert abs(passing.all(open_frame) - whole.all(open_frame)) < 1e-12
    assert begun == [4, 3, 2, 1, 0]  # by onset; they were added in reverse
