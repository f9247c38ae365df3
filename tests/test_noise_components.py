"""Noise components on planted signals, and where their voxels lie."""

from __future__ import annotations

import numpy as np

from scanside.kernels import Geometry, resize_matrix
from scanside.runtime.realtime.noise_components import NoiseComponents, noise_points

VOXELS = 500


def series(volumes: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, 3) shared signals, and (T, P) voxels with drift and noise of their own."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(volumes, 3))
    voxels = 1000 + shared @ rng.normal(0, 20, (3, VOXELS)) + rng.normal(0, 10, (volumes, VOXELS))
    return shared, (voxels + np.arange(volumes)[:, None]).astype(np.float32)


def explained(signals: np.ndarray, scores: np.ndarray) -> float:
    """Least share of a signal's variance in the scores, a constant and a trend."""
    design = np.column_stack([scores, np.ones(len(scores)), np.arange(len(scores))])
    left = signals - design @ np.linalg.lstsq(design, signals, rcond=None)[0]
    return float((1 - left.var(axis=0) / signals.var(axis=0)).min())


def test_components_learnt_at_the_beginning_explain_the_rest_of_the_run():
    shared, voxels = series(120)
    components = NoiseComponents(3)
    for frame in range(16):
        components.see(frame, voxels[frame])
    first = components.learn()
    assert sorted(first) == list(range(16))
    scores = np.array([components.scores(values) for values in voxels])
    np.testing.assert_allclose(scores[:16], [first[frame] for frame in range(16)])
    assert explained(shared[16:], scores[16:]) > 0.95
    assert np.abs(scores[:16].mean(axis=0)).max() < 1e-6


def test_too_few_volumes_teach_nothing_and_spoilt_ones_are_left_out():
    _, voxels = series(12)
    voxels[5] += 5000
    components = NoiseComponents(3)
    for frame in range(7):
        components.see(frame, voxels[frame])
    assert components.learn() == {}
    assert not components.learnt
    components.forget(5)
    for frame in range(7, 12):
        components.see(frame, voxels[frame])
    assert 5 not in components.learn()
    assert components.learnt
    assert (
        np.abs(components.scores(voxels[5])).max()
        > 10 * np.abs([components.scores(voxels[frame]) for frame in range(5)]).max()
    )


def test_components_of_like_energy_are_taken_together_or_not_at_all():
    """Two strong signals alike in energy, then noise whose components are all alike."""
    rng = np.random.default_rng(0)
    moments = rng.normal(size=(16, 2))
    trend = np.vander(np.arange(16.0), 2)
    moments, _ = np.linalg.qr(moments - trend @ np.linalg.lstsq(trend, moments, rcond=None)[0])
    sign = np.where(np.arange(6000) % 2, 1.0, -1.0)
    shared = 100 * moments @ np.stack([np.ones(6000), sign])
    voxels = (1000 + shared + rng.normal(0, 10, (16, 6000))).astype(np.float32)
    components = NoiseComponents(5)
    for frame, values in enumerate(voxels):
        components.see(frame, values)
    scores = np.array(list(components.learn().values()))
    assert components.groups == [range(0, 2)]
    assert not scores[:, 2:].any()
    assert explained(moments, scores[:, :2]) > 0.99


def test_a_dead_voxel_is_no_division_by_zero():
    _, voxels = series(16)
    voxels[:, 7] = 0
    components = NoiseComponents(2)
    for frame, values in enumerate(voxels):
        components.see(frame, values)
    assert all(np.isfinite(scores).all() for scores in components.learn().values())


def test_points_lie_in_the_head_and_outside_what_the_model_reads():
    shape, grid = (20, 24, 16), (10, 12, 8)
    reference = np.zeros(shape, np.float32)
    reference[4:16, 4:20, 2:14] = 100
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    affine[:3, 3] = (-20, -24, -18)
    geometry = Geometry(grid=grid, cube=4, active=np.array([0, 7, 10]))
    inv_std = np.ones(geometry.shape, np.float32)
    inv_std[1] = 0  # masked: nothing is read there
    matrix = resize_matrix(shape, grid)
    points = noise_points(reference, affine, matrix, geometry, inv_std)
    voxels = np.linalg.inv(affine) @ np.c_[points, np.ones(len(points))].T
    voxels = np.rint(voxels[:3].T).astype(int)
    assert len(points) > 100
    assert (reference[tuple(voxels.T)] == 100).all()
    at = np.linalg.inv(matrix)
    model = np.rint(voxels @ at[:3, :3].T + at[:3, 3]).astype(int)
    read = {tuple(v) for v in geometry.voxels[[0, 2]][geometry.in_grid[[0, 2]]]}
    assert not {tuple(v) for v in model} & read
    masked = {tuple(v) for v in geometry.voxels[1][geometry.in_grid[1]]}
    assert {tuple(v) for v in model} & masked


def test_the_last_digit_of_a_place_changes_no_point():
    """Grids that fit together: many voxels lie on the border of what is read."""
    shape, grid = (22, 26, 20), (84, 104, 80)
    half = np.arange(42 * 52 * 40).reshape(42, 52, 40)[:, :25].ravel()
    geometry = Geometry(grid=grid, cube=2, active=half)
    matrix = resize_matrix(shape, grid)
    nudge = np.zeros((4, 4))
    nudge[:3] = np.random.default_rng(0).normal(0, 1e-10, (3, 4))
    head = np.ones(shape, np.float32)
    points = noise_points(head, np.eye(4), matrix, geometry)
    assert len(points) > 100
    assert np.array_equal(noise_points(head, np.eye(4), matrix + nudge, geometry), points)


def test_one_voxel_less_moves_no_other_point():
    geometry = Geometry(grid=(10, 10, 10), cube=5, active=np.array([0]))
    matrix = resize_matrix((40, 40, 40), (10, 10, 10))
    head = np.ones((40, 40, 40), np.float32)
    points = {tuple(p) for p in noise_points(head, np.eye(4), matrix, geometry)}
    head[tuple(int(x) for x in min(points))] = 0
    fewer = {tuple(p) for p in noise_points(head, np.eye(4), matrix, geometry)}
    assert points - fewer == {min(points)}
    assert len(fewer) == len(points)


def test_points_are_no_more_than_asked_for_and_none_where_there_is_no_head():
    geometry = Geometry(grid=(10, 10, 10), cube=5, active=np.array([0]))
    matrix = resize_matrix((40, 40, 40), (10, 10, 10))
    bright = np.ones((40, 40, 40), np.float32)
    assert noise_points(bright, np.eye(4), matrix, geometry).shape == (4000, 3)
    assert noise_points(0 * bright, np.eye(4), matrix, geometry).shape == (0, 3)
