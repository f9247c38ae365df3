"""Rigid registration against simulated motion that is known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from scanside.benchmarks.simulated_head import CENTRE_MM, SimulatedHead, error, rigid
from scanside.kernels import Geometry, resample_patchify, resize_matrix
from scanside.runtime.errors import InputError
from scanside.runtime.realtime.registration import Registration, align_reference
from scanside.runtime.realtime.rigid import (
    closest_turn,
    rigid_matrix,
    rigid_parameters,
    source_matrix,
)
from scanside.runtime.volume import Volume

MM, DEGREES = 0.05, 0.05
"""What this project asks of motion correction."""


@pytest.fixture(scope="module")
def head() -> SimulatedHead:
    return SimulatedHead()


def scan(head: SimulatedHead, moved: np.ndarray, seed: int, **changes: object) -> Volume:
    values = head.volume(moved, np.random.default_rng(seed))
    parts: dict[str, object] = {"data": values, "affine": head.affine, "name": f"volume {seed}"}
    return Volume(**(parts | changes))


def test_motion_of_up_to_3_mm_and_3_degrees_is_found_from_the_reference_place(head: SimulatedHead):
    registration = Registration(scan(head, np.eye(4), 0))
    rng = np.random.default_rng(1)
    for trial in range(8):
        true = rigid(rng.choice([-3, 3], 6) * rng.uniform(0.3, 1, 6), CENTRE_MM)
        found = registration.register(scan(head, true, 2 + trial))
        mm, degrees = error(found.matrix, true)
        assert found.converged
        assert mm < MM
        assert degrees < DEGREES


def test_the_parameters_are_those_of_the_matrix(head: SimulatedHead):
    registration = Registration(scan(head, np.eye(4), 0))
    true = np.array([1.5, -1.0, 2.0, 0.02, -0.015, 0.03])
    found = registration.register(scan(head, rigid_matrix(true, registration.centre_mm), 1))
    assert rigid_matrix(found.parameters, registration.centre_mm) == pytest.approx(found.matrix)
    assert found.parameters[:3] == pytest.approx(true[:3], abs=MM)
    assert found.parameters[3:] == pytest.approx(true[3:], abs=np.radians(DEGREES))


def test_a_warm_start_needs_fewer_steps_and_finds_the_same(head: SimulatedHead):
    registration = Registration(scan(head, np.eye(4), 0))
    true = rigid(np.array([3, -3, 2, 3, -2, 3.0]), CENTRE_MM)
    near = rigid(np.array([2.9, -3, 2.1, 2.9, -2, 3.0]), CENTRE_MM)
    cold = registration.register(scan(head, true, 1))
    warm = registration.register(scan(head, true, 1), near)
    assert warm.steps < cold.steps
    assert max(error(warm.matrix, cold.matrix)) < 0.005


def test_integers_with_slope_and_intercept_and_a_changed_gain_do_not_matter(head: SimulatedHead):
    registration = Registration(scan(head, np.eye(4), 0))
    true = rigid(np.array([1, -2, 0.5, 1, 2, -1.0]), CENTRE_MM)
    values = head.volume(true, np.random.default_rng(1))
    stored = Volume(
        data=np.round(values * 8).astype(np.int16), affine=head.affine, slope=0.15, inter=30.0
    )
    found = registration.register(stored)
    assert found.converged
    assert max(error(found.matrix, true)) < MM


def test_a_volume_on_another_grid_is_registered_in_millimetres(head: SimulatedHead):
    """Another scan of the same head: other voxels, other axes, another place in the scanner."""
    registration = Registration(scan(head, np.eye(4), 0))
    other = SimulatedHead((72, 70, 44), (2.6, 2.7, 3.0))
    true = rigid(np.array([2, -1, 2.5, -2, 1, 2.0]), CENTRE_MM)
    values = other.volume(true, np.random.default_rng(1))
    turned = other.affine[:, [2, 0, 1, 3]]
    found = registration.register(Volume(data=values.transpose(2, 0, 1), affine=turned))
    assert found.converged
    # two scans of unlike resolution blur the head's rim unlike
    assert max(error(found.matrix, true)) < 2 * MM


def test_a_bright_spot_that_comes_and_goes_moves_nothing(head: SimulatedHead):
    """Activation and artefacts are not motion: their residuals are far off and count less."""
    registration = Registration(scan(head, np.eye(4), 0))
    true = rigid(np.array([0.5, 0.5, -0.5, 0.5, 0, 0.5]), CENTRE_MM)
    values = head.volume(true, np.random.default_rng(1))
    values[20:30, 14:24, 16:22] *= 1.4
    found = registration.register(Volume(data=values, affine=head.affine))
    assert max(error(found.matrix, true)) < 2 * MM


def test_a_volume_of_something_else_is_reported_and_not_raised(head: SimulatedHead):
    registration = Registration(scan(head, np.eye(4), 0))
    noise = np.random.default_rng(1).random(head.shape, np.float32)
    of_noise = registration.register(Volume(data=noise, affine=head.affine))
    assert abs(of_noise.similarity) < 0.3
    empty = registration.register(Volume(data=np.zeros_like(noise), affine=head.affine))
    assert not empty.converged
    elsewhere = head.affine.copy()
    elsewhere[0, 3] += 900
    far = registration.register(Volume(data=noise, affine=elsewhere))
    assert not far.converged


def test_a_reference_without_structure_is_refused():
    flat = Volume(data=np.full((20, 20, 20), 7, np.float32), affine=np.eye(4), name="ref.nii")
    with pytest.raises(InputError, match="ref.nii: 0 voxels differ from their neighbours"):
        Registration(flat)
    thin = Volume(data=np.ones((20, 20, 3), np.float32), affine=np.eye(4), name="ref.nii")
    with pytest.raises(InputError, match="too few to register"):
        Registration(thin)


def test_the_runs_reference_is_aligned_to_a_bundle_from_far(head: SimulatedHead):
    model = SimulatedHead((60, 72, 50), (2.8, 2.8, 2.8))
    bundle = scan(model, np.eye(4), 0, affine=model.affine)
    true = rigid(np.array([14, -11, 9, 9, -8, 10.0]), CENTRE_MM)
    found = align_reference(scan(head, true, 1), bundle)
    # two scans of unlike resolution blur the head's rim unlike
    assert max(error(found.matrix, true)) < 0.2


def test_tokens_of_a_moved_volume_are_those_of_the_reference(head: SimulatedHead):
    """The motion goes into the one interpolation from scanner voxels to tokens."""
    geometry = Geometry(grid=(32, 32, 18), cube=6, active=np.arange(3 * 36)[::5])
    reference = scan(head, np.eye(4), 0)
    to_world = head.affine @ resize_matrix(head.shape, geometry.grid)
    moved = scan(head, rigid(np.array([2, -1, 2, 2, -2, 3.0]), CENTRE_MM), 1)
    found = Registration(reference).register(moved).matrix

    def tokens(volume: Volume, motion: np.ndarray) -> np.ndarray:
        matrix = source_matrix(volume.affine, motion, to_world)
        return resample_patchify(volume.data, geometry, model_to_source=matrix)

    still = tokens(reference, np.eye(4))
    corrected, uncorrected = tokens(moved, found), tokens(moved, np.eye(4))
    inside = (still > 100) & (corrected > 100)
    noise = head.noise * 1000  # each volume's own; interpolation lowers it
    assert np.std((corrected - still)[inside]) < 2 * noise
    assert np.std((uncorrected - still)[inside]) > 4 * noise


def test_a_reference_of_another_thing_is_refused(head: SimulatedHead):
    noise = np.random.default_rng(1).random(head.shape, np.float32)
    with pytest.raises(InputError, match="does not match model: correlation .* pass the transform"):
        align_reference(
            Volume(data=noise, affine=head.affine, name="ref"),
            scan(head, np.eye(4), 0, name="model"),
        )


def test_parameters_and_matrix_are_each_others_reverse():
    parameters, centre = np.array([3, -2, 1, 0.3, -0.4, 0.5]), np.array([4.0, 5, 6])
    matrix = rigid_matrix(parameters, centre)
    assert matrix[:3, :3] @ matrix[:3, :3].T == pytest.approx(np.eye(3))
    assert rigid_parameters(matrix, centre) == pytest.approx(parameters)
    assert matrix[:3, :3] @ centre + matrix[:3, 3] == pytest.approx(centre + parameters[:3])
    assert matrix == pytest.approx(rigid(parameters * ([1] * 3 + [180 / np.pi] * 3), centre))
    skewed = matrix[:3, :3] @ (np.eye(3) + 1e-3 * np.arange(9).reshape(3, 3))
    turn = closest_turn(skewed)
    assert turn @ turn.T == pytest.approx(np.eye(3))
    assert np.linalg.norm(turn - skewed) <= np.linalg.norm(matrix[:3, :3] - skewed)
