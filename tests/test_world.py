"""The simulated brains: what `export/reference/README.md` promises, measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanside.export.reference import sampler as sampler_module
from scanside.export.reference.features import encode
from scanside.export.reference.noise import (
    DIFFUSE,
    FEATURE_COVARIANCE,
    GHOST,
    MODES,
    NOISE_CEILING_SNR,
    NOISE_PERCENT,
    WHITE,
    Brain,
    smooth_noise,
)
from scanside.export.reference.oracle import Oracle
from scanside.export.reference.sampler import PATTERNS, Sampler, smooth_patterns
from scanside.export.reference.scenes import draw_scenes
from scanside.export.reference.trials import Session, to_cubes, to_grid, to_nifti
from scanside.export.reference.world import (
    CLUSTER_MM,
    GRID,
    MAP_MM,
    SEEN,
    UNSEEN,
    Subject,
    random_fields,
)


@pytest.fixture(scope="module")
def brain() -> Brain:
    return Brain(Subject("S1"))


@pytest.mark.parametrize("width_mm", [CLUSTER_MM, MAP_MM])
def test_tuning_fields_change_sign_at_the_stated_distance(width_mm):
    step = 0.5
    start = np.random.default_rng(0).uniform(-60, 0, (200, 3))
    line = np.arange(0, 60, step)
    mm = (start[:, None] + line[None, :, None] * np.array([0, 0, 1.0])).reshape(-1, 3)
    field = random_fields(mm, 4, width_mm, 0).reshape(200, len(line), 4)
    crossings = (np.diff(np.sign(field), axis=1) != 0).sum()
    measured = 200 * 4 * line[-1] / crossings
    # Four fields over a head hold few independent crossings of the wide map.
    assert measured == pytest.approx(width_mm, rel=0.3)


def test_the_median_voxel_has_the_stated_noise_ceiling(brain):
    weights = brain.weights.astype(float)
    signal = np.sqrt(np.einsum("vi,ij,vj->v", weights, FEATURE_COVARIANCE, weights))
    assert np.median(signal) / NOISE_PERCENT == pytest.approx(NOISE_CEILING_SNR, rel=1e-3)


def test_at_least_half_of_the_noise_is_correlated():
    assert WHITE + DIFFUSE + MODES + GHOST == pytest.approx(1)
    assert DIFFUSE + MODES + GHOST >= 0.5


def test_smooth_noise_has_unit_variance():
    field = smooth_noise((80, 80, 80), 6.0, np.random.default_rng(0))
    assert field.var() == pytest.approx(1, rel=0.1)


def test_the_unseen_subjects_are_not_among_the_seen():
    assert not set(SEEN) & set(UNSEEN)
    assert len(SEEN) + len(UNSEEN) >= 6


def test_a_trial_as_nifti_is_int16_with_percent_after_scaling(brain):
    volume = next(Session(brain, 0).trials(draw_scenes(1, np.random.default_rng(0))))
    image = to_nifti(volume, brain.subject)
    assert image.shape == (81, 104, 83)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(np.asarray(image.dataobj).T, volume, atol=1 / 300)


def test_the_oracle_is_unbiased_and_knows_its_own_error(brain):
    scenes = draw_scenes(24, np.random.default_rng(1))
    oracle = Oracle(brain)
    volumes = np.stack(list(Session(brain, 5).trials(scenes)))
    z = (oracle.features(volumes) - encode(scenes)) / np.sqrt(np.diag(oracle.error))
    # 24 trials of 67 correlated features: a wrong covariance shows as a factor, not as percents.
    assert z.std() == pytest.approx(1, rel=0.2)
    assert abs(z.mean()) < 0.2


def test_the_sampler_draws_what_a_session_delivers(monkeypatch, tmp_path):
    monkeypatch.setattr(sampler_module, "SEEN", ("S1",))
    monkeypatch.setattr(sampler_module, "POOL", 16)
    sampler = Sampler(tmp_path)
    scenes = draw_scenes(24, np.random.default_rng(2))
    drawn = sampler.trials(scenes, np.ones(len(scenes)), np.random.default_rng(0))
    volumes = np.stack(list(Session(Brain(Subject("S1")), 0).trials(scenes)))
    cubes = to_cubes(to_grid(torch.from_numpy(volumes)), sampler.active)
    inverse = torch.where(sampler.std > 0, 1 / sampler.std.clamp_min(1e-6), 0.0)
    delivered = ((cubes - sampler.mean) * inverse) @ smooth_patterns(PATTERNS).T
    groups = [slice(0, 1), slice(1, 10), slice(10, 50), slice(50, PATTERNS)]
    for group in groups:
        ratio = drawn[..., group].std() / delivered[..., group].std()
        assert ratio == pytest.approx(1, abs=0.12)
    # Same scenes, other noise: the signal that both share shows as correlation.
    pairs = torch.corrcoef(torch.stack([drawn.flatten(), delivered.flatten()]))
    assert pairs[0, 1] > 0.05


def test_tokens_of_the_reference_are_those_of_the_runtime_kernel(brain):
    from scanside.kernels import Geometry, resample_patchify, resize_matrix

    subject = Subject("S5")
    volume = np.random.default_rng(3).standard_normal(subject.shape).astype(np.float32)
    active = torch.tensor([40, 100, 250])
    ours = to_cubes(to_grid(torch.from_numpy(volume)[None]), active)[0].numpy()
    geometry = Geometry(grid=GRID, cube=14, active=active.numpy(), pad="back")
    kernel = resample_patchify(
        volume, geometry, model_to_source=resize_matrix(subject.shape, GRID, align_corners=False)
    )
    np.testing.assert_allclose(kernel, ours, atol=2e-5)
