"""The streaming fit beside nilearn's fit of all volumes at once, with the same design."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from nilearn.glm.first_level import run_glm

from scanside.runtime.errors import InputError
from scanside.runtime.realtime.basis import orthonormal_nuisance
from scanside.runtime.realtime.beta import Beta
from scanside.runtime.realtime.design import Event, Regressors, lss_design
from scanside.runtime.realtime.drift import Drift
from scanside.runtime.realtime.glm import StreamingGlm
from scanside.runtime.realtime.glm_config import GlmConfig
from scanside.runtime.realtime.hrf import Response

TR_S, VOLUMES, ELEMENTS = 1.6, 200, 4500
DRIFT = Drift(volumes=VOLUMES, tr_s=TR_S)
OLS_R, AR_R = 0.999, 0.99
"""What this project asks of the betas."""


@dataclass
class Run:
    """A simulated run, and what a fit is told of it."""

    values: np.ndarray
    """(T, E) float32."""
    motion: np.ndarray
    """(T, 6)."""
    events: list[Event]
    truth: np.ndarray
    """(trials, E)."""


def simulate(elements: int = ELEMENTS, volumes: int = VOLUMES, rho: float = 0.3) -> Run:
    """Brightness of 1000, drift of 2 %, motion of 1 %, responses of 1 %, noise of 1 %."""
    rng = np.random.default_rng(0)
    onsets = np.arange(6.0, volumes * TR_S - 8, 4.0) + rng.uniform(0, 1, 1)
    events = [Event(float(onset) + 0.01, 3.0) for onset in onsets]
    regressors = Regressors(Response.glover(TR_S), TR_S)
    for event in events:
        regressors.add(event)
    design = np.array([[regressors.of(i, t) for i in range(len(events))] for t in range(volumes)])
    steps = [0.3] * 3 + [0.006] * 3  # enough to be regressed from the first trials on
    motion = np.cumsum(rng.normal(0, steps, (volumes, 6)), axis=0)
    truth = rng.normal(0, 10, (len(events), elements))
    white = rng.normal(0, 10, (volumes, elements))
    noise = np.empty_like(white)
    noise[0] = white[0]
    for t in range(1, volumes):
        noise[t] = rho * noise[t - 1] + white[t]
    drift = np.array([Drift(volumes=volumes, tr_s=TR_S).row(t) for t in range(volumes)])
    slow = drift[:, 1:] @ rng.normal(0, 100, (drift.shape[1] - 1, elements))
    moved = (motion / motion.std(axis=0)) @ rng.normal(0, 10, (6, elements))
    values = 1000 + rng.normal(0, 100, elements) + slow + moved + design @ truth + noise
    return Run(values.astype(np.float32), motion, events, truth)


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate()


def config(**changes: object) -> GlmConfig:
    parts: dict[str, object] = {"drift": DRIFT, "noise_components": 0, "open_s": 1e9}
    return GlmConfig(**(parts | changes))


def stream(run: Run, glm: StreamingGlm, frames: range | list[int], until: int = 0) -> StreamingGlm:
    for event in run.events[until:]:
        glm.add_event(event.onset_s, event.duration_s)
    for frame in frames:
        assert glm.add_volume(frame, run.values[frame], motion=run.motion[frame])
    return glm


def nilearn_design(run: Run, trial: int, frames: list[int]) -> np.ndarray:
    regressors = Regressors(Response.glover(TR_S), TR_S)
    for event in run.events:
        regressors.add(event)
    return lss_design(regressors, trial, frames, DRIFT, run.motion[frames])


def nilearn(design: np.ndarray, values: np.ndarray, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Beta and its variance of the design's first column."""
    labels, results = run_glm(values.astype(float), design, noise_model=model)
    beta, variance = np.empty(values.shape[1]), np.empty(values.shape[1])
    for label, result in results.items():
        beta[labels == label] = result.theta[0]
        variance[labels == label] = result.cov[0, 0] * result.dispersion
    return beta, variance


def assert_equal(
    found: Beta, expected: tuple[np.ndarray, np.ndarray], least_r: float, within: float
) -> None:
    beta, variance = expected
    assert np.corrcoef(found.values, beta)[0, 1] >= least_r
    error = np.sqrt(variance)
    assert np.abs(found.values - beta).max() < within * error.mean()
    np.testing.assert_allclose(found.variance, variance, rtol=within)


@pytest.mark.parametrize("trial", [0, 20, -1])
def test_betas_of_a_whole_run_equal_nilearn(run: Run, trial: int):
    glm = stream(run, StreamingGlm(ELEMENTS, config()), range(VOLUMES))
    trial %= len(run.events)
    found = glm.beta(trial)
    expected = nilearn(nilearn_design(run, trial, list(range(VOLUMES))), run.values, "ols")
    # float32 sums of 200 volumes, beside float64
    assert_equal(found, expected, OLS_R, 2e-3)
    assert found.freedom == VOLUMES - (2 + DRIFT.columns + 6)


@pytest.mark.parametrize("frames", [20, 60, 120])
def test_betas_amid_a_run_equal_nilearn_with_what_the_run_can_carry(run: Run, frames: int):
    glm = stream(run, StreamingGlm(ELEMENTS, config()), range(frames))
    trial = max(t for t, e in enumerate(run.events) if e.onset_s + 12 < frames * TR_S)
    design = nilearn_design(run, trial, list(range(frames)))
    width = design.shape[1]
    blocks = [[2], [*range(3, 2 + DRIFT.columns)], [*range(2 + DRIFT.columns, width)]]
    basis = orthonormal_nuisance(design.T @ design, blocks, frames // 4)
    assert basis.shape[1] <= frames // 4
    same = np.concatenate([design[:, :2], design @ basis], axis=1)
    found = glm.beta(trial)
    assert found.freedom == frames - same.shape[1]
    assert_equal(found, nilearn(same, run.values[:frames], "ols"), OLS_R, 5e-3)


def test_prewhitened_betas_equal_nilearn(run: Run):
    glm = stream(run, StreamingGlm(ELEMENTS, config(autoregressive=True)), range(VOLUMES))
    design = nilearn_design(run, 20, list(range(VOLUMES)))
    beta, variance = nilearn(design, run.values, "ar1")
    found = glm.beta(20)
    assert np.corrcoef(found.values, beta)[0, 1] >= AR_R
    # the same coefficient of autoregression, but where rounding moves it over a step of 0.01
    assert np.median(np.abs(found.values - beta)) < 1e-3 * np.sqrt(variance).mean()
    assert np.abs(found.values - beta).max() < 0.05 * np.sqrt(variance).mean()
    # the noise is taken from the residuals of ordinary least squares
    np.testing.assert_allclose(found.variance, variance, rtol=0.05)
    ordinary = nilearn(design, run.values, "ols")[0]
    assert np.median(np.abs(ordinary - beta)) > 0.05 * np.sqrt(variance).mean()


def test_missing_and_spoilt_volumes_have_no_weight(run: Run):
    missing, spikes, late_spikes = {17, 18, 60, 199}, {40, 41}, {90}
    glm = StreamingGlm(ELEMENTS, config())
    for event in run.events:
        glm.add_event(event.onset_s, event.duration_s)
    for frame in range(VOLUMES):
        if frame in missing:
            continue
        values = run.values[frame] + (500 if frame in spikes | late_spikes else 0)
        glm.add_volume(frame, values, motion=run.motion[frame], spike=frame in spikes)
        if frame - 5 in late_spikes:
            assert glm.spoil(frame - 5)
    left = [f for f in range(VOLUMES) if f not in missing | spikes | late_spikes]
    found = glm.beta(10)
    expected = nilearn(nilearn_design(run, 10, left), run.values[left], "ols")
    assert found.volumes == len(left)
    assert_equal(found, expected, OLS_R, 2e-3)
    assert not glm.spoil(100)  # summed already
    # a regressor for the spike alone explains it wholly: the same estimate
    alone = np.zeros((VOLUMES, 1))
    alone[40] = 1
    every = list(range(VOLUMES))
    spiked = np.concatenate([nilearn_design(run, 10, every), alone], axis=1)
    others = [f for f in every if f != 40]
    with_regressor = nilearn(spiked, run.values, "ols")
    without_volume = nilearn(nilearn_design(run, 10, others), run.values[others], "ols")
    np.testing.assert_allclose(with_regressor[0], without_volume[0], atol=1e-6)


def test_prewhitened_betas_with_missing_volumes_equal_nilearn(run: Run):
    """nilearn is given a regressor for each missing volume, which is how it can leave one out
    without taking those beside it for neighbours."""
    missing = [17, 18, 60, 120]
    left = [f for f in range(VOLUMES) if f not in missing]
    glm = stream(run, StreamingGlm(ELEMENTS, config(autoregressive=True)), left)
    alone = np.eye(VOLUMES)[:, missing]
    design = np.concatenate([nilearn_design(run, 20, list(range(VOLUMES))), alone], axis=1)
    beta, variance = nilearn(design, run.values, "ar1")
    found = glm.beta(20)
    assert np.corrcoef(found.values, beta)[0, 1] >= AR_R
    # at a missing volume the residual counts as 0 here, and as unknown there
    assert np.abs(found.values - beta).mean() < 0.1 * np.sqrt(variance).mean()
    np.testing.assert_allclose(found.variance, variance, rtol=0.15)


def test_order_of_arrival_and_late_markers_change_nothing(run: Run):
    in_order = stream(run, StreamingGlm(ELEMENTS, config()), range(80))
    frames = list(range(80))
    for at in (10, 31, 50):
        frames.insert(at + 12, frames.pop(at))  # 12 volumes late
    late = StreamingGlm(ELEMENTS, config())
    known = 0
    for frame in frames:
        late.add_volume(frame, run.values[frame], motion=run.motion[frame])
        while known < len(run.events) and run.events[known].onset_s + 9.5 < late.newest * TR_S:
            late.add_event(run.events[known].onset_s, run.events[known].duration_s)
            known += 1
    assert 10 < known < len(run.events)
    one, other = in_order.beta(known - 2), late.beta(known - 2)
    assert other.volumes == one.volumes == 80
    # in both, trials whose markers are not there yet have no response within the first 80 volumes
    # but the last few
    missing = [e for e in run.events[known:] if e.onset_s < 79 * TR_S]
    for event in missing:
        late.add_event(event.onset_s, event.duration_s)
    other = late.beta(known - 2)
    assert np.abs(other.values - one.values).max() < 1e-3 * np.sqrt(one.variance.mean())
    assert not late.add_volume(60, run.values[60], motion=run.motion[60])
    with pytest.raises(InputError, match="comes too late: volumes before .* are summed already"):
        late.add_event(30.0, 3.0)


def test_float32_sums_equal_float64_sums(run: Run):
    single, double = (
        stream(run, StreamingGlm(ELEMENTS, config(dtype=dtype)), range(VOLUMES)).beta(25)
        for dtype in ("float32", "float64")
    )
    error = float(np.sqrt(double.variance.mean()))
    assert np.abs(single.values - double.values).max() < 1e-3 * error
    np.testing.assert_allclose(single.variance, double.variance, rtol=1e-3)


def test_noise_components_make_betas_more_exact():
    """Five shared signals of 3 % in elements and in voxels outside the mask."""
    run = simulate(elements=600)
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(VOLUMES, 5))
    run.values += (shared @ rng.normal(0, 30, (5, 600))).astype(np.float32)
    outside = 1000 + shared @ rng.normal(0, 30, (5, 800)) + rng.normal(0, 30, (VOLUMES, 800))
    with_noise = StreamingGlm(600, config(noise_components=5))
    without = StreamingGlm(600, config())
    for event in run.events:
        with_noise.add_event(event.onset_s, event.duration_s)
        without.add_event(event.onset_s, event.duration_s)
    for frame, values in enumerate(run.values):
        noise = outside[frame].astype(np.float32)
        with_noise.add_volume(frame, values, motion=run.motion[frame], noise=noise)
        without.add_volume(frame, values, motion=run.motion[frame])
    for trial in (10, 30):
        error = [np.std(glm.beta(trial).values - run.truth[trial]) for glm in (with_noise, without)]
        assert error[0] < 0.5 * error[1]
        assert with_noise.beta(trial).variance.mean() < 0.25 * without.beta(trial).variance.mean()


def test_a_long_run_keeps_its_memory_and_its_betas():
    run = simulate(elements=64, volumes=700)
    drift = Drift(volumes=700, tr_s=TR_S)
    glm = StreamingGlm(64, config(drift=drift, open_s=60.0))
    sizes: set[int] = set()
    for event in run.events:
        glm.add_event(event.onset_s, event.duration_s)
    for frame, values in enumerate(run.values):
        glm.add_volume(frame, values, motion=run.motion[frame])
        if frame > 100:
            sizes.add(glm.memory_bytes)
    assert len(sizes) == 1
    assert len(glm.open_trials) <= 16
    trial = glm.open_trials[3]
    regressors = Regressors(Response.glover(TR_S), TR_S)
    for event in run.events:
        regressors.add(event)
    design = lss_design(regressors, trial, range(700), drift, run.motion)
    # sums of 700 volumes
    assert_equal(glm.beta(trial), nilearn(design, run.values, "ols"), OLS_R, 5e-3)


def test_the_slice_time_moves_the_regressors(run: Run):
    glm = stream(run, StreamingGlm(ELEMENTS, config(slice_time_s=0.8)), range(VOLUMES))
    regressors = Regressors(Response.glover(TR_S), TR_S, slice_time_s=0.8)
    for event in run.events:
        regressors.add(event)
    design = lss_design(regressors, 20, range(VOLUMES), DRIFT, run.motion)
    assert_equal(glm.beta(20), nilearn(design, run.values, "ols"), OLS_R, 2e-3)
    plain = nilearn(nilearn_design(run, 20, list(range(VOLUMES))), run.values, "ols")[0]
    assert np.corrcoef(glm.beta(20).values, plain)[0, 1] < 0.9999


def test_a_single_first_trial_needs_no_others():
    run = simulate(elements=10)
    glm = StreamingGlm(10, config())
    glm.add_event(4 * TR_S, 3.0)
    variance: list[float] = []
    for frame in range(12):
        glm.add_volume(frame, run.values[frame], motion=run.motion[frame])
        if frame == 3:
            with pytest.raises(InputError, match="trial 0 is not open"):
                glm.beta(0)
        if frame == 4:  # it begins: no response yet
            with pytest.raises(InputError, match="cannot be told from"):
                glm.beta(0)
        if frame > 4:
            found = glm.beta(0)
            assert np.isfinite(found.values).all()
            variance.append(float(found.variance.mean()))
    assert variance[0] > 1000 * variance[-1]  # the variance says how little is known at first


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"noise_components": 6}, "'noise_components' must be 0 to 5; got 6"),
        ({"noise_components": 5, "hold": 8}, "'hold' must be at least 12"),
        ({"open_s": 0.0}, "'open_s' must be positive"),
        ({"volumes_per_column": 0}, "at least 1"),
        ({"dtype": "float16"}, "float32 or float64"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(change: dict[str, object], sentence: str):
    with pytest.raises(InputError, match=sentence):
        config(**change)


def test_volumes_and_events_that_cannot_be_are_refused():
    glm = StreamingGlm(4, config(noise_components=1))
    right = {"motion": np.zeros(6), "noise": np.ones(9, np.float32)}
    with pytest.raises(InputError, match="must have 4 elements.*got 5"):
        glm.add_volume(0, np.ones(5, np.float32), **right)
    with pytest.raises(InputError, match="NaN or infinity"):
        glm.add_volume(0, np.array([1, np.nan, 1, 1], np.float32), **right)
    with pytest.raises(InputError, match="'motion' must be six"):
        glm.add_volume(0, np.ones(4, np.float32), noise=right["noise"])
    with pytest.raises(InputError, match="'noise' must be the voxels"):
        glm.add_volume(0, np.ones(4, np.float32), motion=np.zeros(6))
    with pytest.raises(InputError, match="onset must be a number"):
        glm.add_event(float("nan"), 1.0)
    with pytest.raises(InputError, match="duration must be 0 or more"):
        glm.add_event(1.0, -1.0)
    with pytest.raises(InputError, match="slice time must lie within the TR"):
        StreamingGlm(4, config(slice_time_s=2.0))
    assert glm.newest == -1


def test_a_head_that_lies_still_has_no_motion_to_regress(run: Run):
    """What registration mistakes for motion follows the activity, and would take it away."""
    jitter = np.outer(np.sin(np.arange(VOLUMES)), [0.02] * 3 + [4e-4] * 3)
    still = StreamingGlm(run.values.shape[1], config())
    without = StreamingGlm(run.values.shape[1], config(motion=False))
    for event in run.events:
        still.add_event(event.onset_s, event.duration_s)
        without.add_event(event.onset_s, event.duration_s)
    for frame, values in enumerate(run.values):
        still.add_volume(frame, values, motion=jitter[frame])
        without.add_volume(frame, values)
    # one fit carries six columns that it leaves out: the same sums in another order
    np.testing.assert_allclose(still.beta(9).values, without.beta(9).values, rtol=1e-4, atol=1e-3)
