"""Slices of a volume: the right place, the right way up, readable colours."""

import numpy as np
import pytest

from scanside.runtime.demo.slices import ZOOM, colours, draw_brain, most_active

SHAPE = (31, 41, 27)
AFFINE = np.array([[2.0, 0, 0, -30], [0, 2, 0, -60], [0, 0, 2, -20], [0, 0, 0, 1]])
CENTRE = (8, 30, 12)


def hot_volume() -> np.ndarray:
    """A brain of weak noise with one active ball at the left, anterior, inferior."""
    rng = np.random.default_rng(0)
    volume = rng.normal(0, 0.1, SHAPE).astype(np.float32)
    place = np.indices(SHAPE) - np.array(CENTRE)[:, None, None, None]
    volume[(place**2).sum(0) < 42] += 3
    volume[:3] = 0
    return volume


def test_the_most_active_place_is_found():
    assert np.abs(np.subtract(most_active(hot_volume(), np.ones(SHAPE, bool)), CENTRE)).max() <= 1


def test_the_most_active_place_is_sought_in_the_region_only():
    region = np.zeros(SHAPE, bool)
    region[15:, :15] = True
    assert region[most_active(hot_volume(), region)]


@pytest.mark.parametrize(
    ("k", "across", "up", "edges"),
    [(0, 1, 2, "PASI"), (1, 0, 2, "LRSI"), (2, 0, 1, "LRAP")],
    ids=["sagittal", "coronal", "axial"],
)
def test_a_slice_is_drawn_with_its_edges_as_labelled(k: int, across: int, up: int, edges: str):
    """Left and posterior stand at the left, superior and anterior on top."""
    drawn = draw_brain(hot_volume(), AFFINE, np.ones(SHAPE, bool)).slices[k]
    assert "".join(drawn.edges) == edges
    assert drawn.pixels.shape == (ZOOM * SHAPE[up], ZOOM * SHAPE[across], 4)
    red, blue = drawn.pixels[..., 0].astype(int), drawn.pixels[..., 2].astype(int)
    rows, columns = np.nonzero((red - blue > 60) & (drawn.pixels[..., 3] > 0))
    assert np.median(columns) / ZOOM == pytest.approx(CENTRE[across], abs=3)
    assert np.median(rows) / ZOOM == pytest.approx(SHAPE[up] - 1 - CENTRE[up], abs=3)


def test_outside_the_brain_is_transparent():
    drawn = draw_brain(hot_volume(), AFFINE, np.ones(SHAPE, bool)).slices[2]
    assert drawn.pixels[: ZOOM * 5, : 2 * ZOOM, 3].max() == 0


def test_positions_are_in_millimetres():
    region = np.zeros(SHAPE, bool)
    region[CENTRE] = True
    positions = [s.position for s in draw_brain(hot_volume(), AFFINE, region).slices]
    assert positions == ["x = −14 mm", "y = 0 mm", "z = 4 mm"]


def test_the_colour_map_is_blue_neutral_orange_and_clamped():
    low, zero, high, beyond = colours(np.array([-1.0, 0.0, 1.0, 9.0])).astype(int)
    assert low[2] > low[0]
    assert high[0] > high[2]
    assert np.ptp(zero) < 5
    assert (beyond == high).all()


def test_a_volume_of_zeros_can_be_drawn():
    draw_brain(np.zeros(SHAPE, np.float32), AFFINE, np.ones(SHAPE, bool))
