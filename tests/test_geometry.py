"""Where the elements of the tokens lie."""

import numpy as np
import pytest

from scanside.kernels import Geometry, resize_matrix


def cut(volume: np.ndarray, cube: int, before: tuple[int, int, int]) -> np.ndarray:
    """Every cube of a volume, padded in front by hand and behind to whole cubes."""
    widths = [(b, -(b + size) % cube) for b, size in zip(before, volume.shape, strict=True)]
    padded = np.pad(volume, widths)
    a, b, c = (size // cube for size in padded.shape)
    cubes = padded.reshape(a, cube, b, cube, c, cube).transpose(0, 2, 4, 1, 3, 5)
    return cubes.reshape(-1, cube**3)


def test_the_papers_grid_has_288_cubes_of_2744_voxels():
    geometry = Geometry(grid=(83, 104, 81), cube=14, active=np.arange(288))
    assert geometry.cube_grid == (6, 8, 6)
    assert geometry.shape == (288, 2744)


@pytest.mark.parametrize(
    ("pad", "before"), [("back", (0, 0, 0)), ("front", (1, 8, 3)), ("both", (0, 4, 1))]
)
def test_voxels_are_those_of_a_padded_volume_cut_into_cubes(pad: str, before: tuple[int, int, int]):
    grid = (83, 104, 81)
    numbers = np.arange(1, 1 + np.prod(grid)).reshape(grid)
    expected = cut(numbers, 14, before)
    geometry = Geometry(grid=grid, cube=14, active=np.arange(288), pad=pad)
    found = np.zeros(geometry.shape, int)
    found[geometry.in_grid] = numbers[tuple(geometry.voxels[geometry.in_grid].T)]
    assert (found == expected).all()


@pytest.mark.parametrize("pad", ["back", "front", "both"])
def test_voxels_come_in_parts_too_and_lie_in_the_grid_where_in_grid_says(pad: str):
    geometry = Geometry(grid=(8, 10, 7), cube=3, active=np.array([35, 0, 17, 4, 23]), pad=pad)
    parts = [geometry.voxels_of(first, first + 2) for first in (0, 2, 4)]
    assert [len(part) for part in parts] == [2, 2, 1]
    assert (np.concatenate(parts) == geometry.voxels).all()
    lies = ((geometry.voxels >= 0) & (geometry.voxels < geometry.grid)).all(axis=-1)
    assert (geometry.in_grid == lies).all()
    assert not lies.all()


def test_active_cubes_come_in_the_order_of_the_list():
    geometry = Geometry(grid=(4, 4, 4), cube=2, active=np.array([7, 0]))
    assert geometry.voxels[:, 0].tolist() == [[2, 2, 2], [0, 0, 0]]


def test_cube_of_one_voxel_is_the_plain_voxel_vector():
    mask = np.random.default_rng(0).random((5, 6, 7)) < 0.3
    geometry = Geometry(grid=(5, 6, 7), cube=1, active=np.flatnonzero(mask))
    assert (geometry.voxels[:, 0] == np.argwhere(mask)).all()


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"grid": (0, 4, 4)}, ValueError, "'grid' must be three sizes"),
        ({"grid": (4, 4)}, ValueError, "'grid' must be three sizes"),
        ({"grid": (4.5, 4, 4)}, TypeError, r"'grid' must be in whole voxels; got \(4.5, 4, 4\)"),
        ({"cube": 0}, ValueError, "'cube' must be 1 to 1024; got 0"),
        ({"cube": 1025}, ValueError, "'cube' must be 1 to 1024; got 1025"),
        ({"cube": 2.0}, TypeError, r"'cube' must be in whole voxels; got \(2.0,\)"),
        ({"pad": "left"}, ValueError, "'pad' must be one of back, front, both; got 'left'"),
        ({"active": np.array([8])}, ValueError, r"'active' must lie in 0..7, .*got 8"),
        ({"active": np.array([-1])}, ValueError, r"'active' must lie in 0..7, .*got -1"),
        ({"active": np.array([1, 1])}, ValueError, "'active' must name each cube once"),
        ({"active": np.array([0.5])}, ValueError, "'active' must be a list of integers"),
    ],
)
def test_wrong_geometry_names_the_argument(
    change: dict[str, object], error: type[Exception], sentence: str
):
    right = {"grid": (4, 4, 4), "cube": 2, "active": np.array([0])}
    with pytest.raises(error, match=sentence):
        Geometry(**(right | change))


def test_resize_of_equal_shapes_is_the_identity():
    assert (resize_matrix((5, 6, 7), (5, 6, 7)) == np.eye(4)).all()
    assert (resize_matrix((5, 6, 7), (5, 6, 7), align_corners=True) == np.eye(4)).all()


def test_resize_keeps_faces_or_corner_centres():
    half_pixel, corners = (resize_matrix((9, 9, 9), (4, 4, 4), flag) for flag in (False, True))
    assert (half_pixel @ [-0.5, 3.5, 0, 1])[:2] == pytest.approx([-0.5, 8.5])
    assert (corners @ [0, 3, 0, 1])[:2] == pytest.approx([0, 8])


def test_resize_of_an_empty_shape_is_refused():
    with pytest.raises(ValueError, match="'source_shape'"):
        resize_matrix((0, 4, 4), (4, 4, 4))
