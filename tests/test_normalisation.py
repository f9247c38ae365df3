"""Running normalisation beside NumPy's mean and standard deviation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.normalisation import RunningNormalisation


def normalisation(betas: np.ndarray, identity: str = "bundle 1") -> RunningNormalisation:
    out = RunningNormalisation(betas.shape[1], identity)
    for beta in betas:
        out.update(beta)
    return out


@pytest.fixture
def betas() -> np.ndarray:
    """A mean that is large beside the deviation, in float32 as betas are."""
    return np.random.default_rng(0).normal(1000, 0.5, (60, 7)).astype(np.float32)


def test_mean_and_variance_are_those_of_all_betas(betas: np.ndarray):
    found = normalisation(betas)
    assert found.mean == pytest.approx(betas.mean(axis=0, dtype=float), rel=1e-12)
    assert found.variance == pytest.approx(betas.astype(float).var(axis=0, ddof=1), rel=1e-9)


def test_a_beta_is_normalised_by_what_is_known_by_then(betas: np.ndarray):
    found = RunningNormalisation(7, "bundle 1")
    for trial, beta in enumerate(betas):
        found.update(beta)
        if trial >= 1:
            known = betas[: trial + 1].astype(float)
            z = (beta - known.mean(axis=0)) / known.std(axis=0, ddof=1)
            assert found.normalise(beta) == pytest.approx(z, abs=1e-5)


def test_an_element_that_never_varies_is_zero(betas: np.ndarray):
    betas[:, 2] = 5
    found = normalisation(betas)
    out = found.normalise(betas[0] + 1)
    assert out.dtype == np.float32
    assert out[2] == 0
    assert (out[[0, 1, 3]] != 0).all()


def test_a_saved_state_goes_on_as_if_never_interrupted(betas: np.ndarray, tmp_path: Path):
    path = tmp_path / "run.npz"
    normalisation(betas[:30]).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]
    resumed = RunningNormalisation.load(path, 7, "bundle 1")
    for beta in betas[30:]:
        resumed.update(beta)
    whole = normalisation(betas)
    assert resumed.count == whole.count
    assert (resumed.mean == whole.mean).all()
    assert (resumed.variance == whole.variance).all()


def test_a_former_run_may_count_for_less(betas: np.ndarray, tmp_path: Path):
    path = tmp_path / "run.npz"
    former = normalisation(betas)
    former.save(path)
    resumed = RunningNormalisation.load(path, 7, "bundle 1", most=10)
    assert resumed.count == 10
    assert resumed.variance == pytest.approx(former.variance)
    resumed.update(betas[0] + 11)
    assert resumed.mean - former.mean == pytest.approx((betas[0] + 11 - former.mean) / 11)


def test_states_that_do_not_fit_are_refused(betas: np.ndarray, tmp_path: Path):
    path = tmp_path / "run.npz"
    normalisation(betas).save(path)
    with pytest.raises(InputError, match="belongs to 'bundle 1', this run to 'bundle 2'"):
        RunningNormalisation.load(path, 7, "bundle 2")
    with pytest.raises(InputError, match="has 7 elements and 60 betas; this run has 8"):
        RunningNormalisation.load(path, 8, "bundle 1")
    with pytest.raises(InputError, match="'most' must be at least 2"):
        RunningNormalisation.load(path, 7, "bundle 1", most=1)
    with pytest.raises(InputError, match=r"absent.npz is no saved normalisation"):
        RunningNormalisation.load(tmp_path / "absent.npz", 7, "bundle 1")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="is no saved normalisation"):
        RunningNormalisation.load(path, 7, "bundle 1")
    np.savez(path, format=1, identity=np.array(["x"], object), count=3)  # a pickle within
    with pytest.raises(InputError, match="is no saved normalisation"):
        RunningNormalisation.load(path, 7, "bundle 1")


def test_betas_that_cannot_be_are_refused(betas: np.ndarray):
    found = normalisation(betas[:1])
    with pytest.raises(InputError, match="1 betas are too few"):
        found.normalise(betas[0])
    with pytest.raises(InputError, match="NaN or infinity"):
        found.update(np.full(7, np.nan))
    with pytest.raises(InputError, match=r"must be \(7,\) finite numbers; got \(3,\)"):
        found.update(np.ones(3))
    assert found.count == 1
