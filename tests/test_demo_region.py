"""Which voxels of a volume lie in active cubes."""

import numpy as np
import pytest

from scanside.kernels import Geometry, resize_matrix
from scanside.runtime.demo.region import read_region

GRID = (10, 12, 9)


@pytest.mark.parametrize("pad", ["back", "front", "both"])
def test_on_the_model_grid_the_region_is_the_cubes(pad: str):
    geometry = Geometry(grid=GRID, cube=4, active=np.array([0, 7, 26]), pad=pad)
    expected = np.zeros(GRID, bool)
    expected[tuple(geometry.voxels[geometry.in_grid].T)] = True
    assert (read_region(geometry, np.eye(4), GRID) == expected).all()


def test_a_flipped_volume_has_the_region_flipped():
    geometry = Geometry(grid=GRID, cube=4, active=np.array([1, 5]))
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = GRID[0] - 1
    plain = read_region(geometry, np.eye(4), GRID)
    assert (read_region(geometry, flip, GRID) == plain[::-1]).all()


def test_a_finer_volume_has_a_region_without_holes():
    geometry = Geometry(grid=GRID, cube=4, active=np.array([0]))
    shape = tuple(2 * size for size in GRID)
    region = read_region(geometry, resize_matrix(shape, GRID), shape)
    assert region[:8, :8, :8].all()
    assert region.sum() == 8**3


def test_outside_the_model_grid_nothing_is_read():
    geometry = Geometry(grid=GRID, cube=4, active=np.arange(27))
    shift = np.eye(4)
    shift[0, 3] = 6
    region = read_region(geometry, shift, (10, 12, 9))
    assert not region[:6].any()
    assert region[6:].all()
