"""Samples of a volume at points, and their gradient."""

import numpy as np
import pytest
from scipy import ndimage

from scanside.kernels import sample_gradient, sample_volume
from scanside.kernels.native import instruction_sets, sample_native
from scanside.kernels.resample_reference import sample_trilinear

SHAPE = (13, 1, 17)


def random_volume(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    values = np.random.default_rng(0).random(shape) * 1000
    return np.asfortranarray(values.astype(dtype))


def random_points(shape: tuple[int, ...], count: int, reach: float) -> np.ndarray:
    low, high = np.full(3, -reach), np.array(shape) - 1 + reach
    return np.random.default_rng(1).uniform(low, high, (count, 3))


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("dtype", ["int16", "uint16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(13, 11, 17), (13, 1, 17), (1, 1, 1)], ids=str)
def test_samples_equal_the_reference(shape: tuple[int, ...], dtype: str, instruction_set: str):
    volume, points = random_volume(shape, dtype), random_points(shape, 3000, reach=1)
    expected = sample_trilinear(volume, points, 0.5, -20, 7)
    out = np.full(3000, np.nan, np.float32)
    sample_native(volume, points, 0.5, -20, 7, out, None, instruction_set=instruction_set)
    assert out == pytest.approx(expected, rel=1e-5, abs=1e-2)
    assert 100 < (out == 7).sum() < 2900


def test_samples_equal_scipy_inside():
    volume = random_volume((13, 11, 17))
    points = random_points(volume.shape, 500, reach=0).reshape(5, 100, 3)
    expected = ndimage.map_coordinates(volume.astype(float), np.moveaxis(points, -1, 0), order=1)
    assert sample_volume(volume, points) == pytest.approx(expected, rel=1e-5)


def test_gradient_is_the_difference_between_neighbouring_points():
    """Between two voxels the samples change linearly along each axis, so differences are exact."""
    volume, points = random_volume((9, 8, 7), "int16"), random_points((9, 8, 7), 400, reach=0)
    cell = np.floor(points)
    points = cell + 0.2 + 0.6 * (points - cell)
    samples, gradient = sample_gradient(volume, points, slope=0.5, inter=3)
    assert (samples == sample_volume(volume, points, slope=0.5, inter=3)).all()
    for axis in range(3):
        step = 0.1 * np.eye(3)[axis]
        low, high = (sample_trilinear(volume, points + sign * step, 0.5, 3, 0) for sign in (-1, 1))
        assert gradient[:, axis] == pytest.approx((high - low) / 0.2, abs=1e-2)


def test_gradient_is_zero_where_the_point_is_clamped_or_outside():
    volume = random_volume((5, 5, 5))
    points = np.array([[-0.3, 2.5, 2.5], [4.4, 2.5, 2.5], [2.5, 2.5, -0.8], [2.5, np.nan, 2.5]])
    samples, gradient = sample_gradient(volume, points, fill=9)
    assert (gradient[:2, 0] == 0).all()
    assert (gradient[:2, 1:] != 0).all()
    assert (gradient[2:] == 0).all()
    assert (samples[2:] == 9).all()


def test_many_points_do_not_depend_on_the_number_of_threads():
    volume = random_volume((30, 31, 32))
    points = random_points(volume.shape, 1 << 19, reach=1)
    assert (sample_volume(volume, points, threads=1) == sample_volume(volume, points)).all()


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (
            {"volume": np.zeros((4, 4), np.float32)},
            ValueError,
            "'volume' must have three axes, none",
        ),
        ({"volume": np.zeros((4, 4, 4))}, TypeError, "'volume' must be int16.*got float64"),
        ({"points": np.zeros((4, 2))}, ValueError, r"'points' must have the shape \(..., 3\)"),
        ({"slope": np.inf}, ValueError, "'slope' must be finite"),
        ({"threads": 0}, ValueError, "'threads' must be 1 to 1024"),
    ],
)
def test_a_wrong_argument_is_named(
    change: dict[str, object], error: type[Exception], sentence: str
):
    right: dict[str, object] = {"volume": random_volume(SHAPE), "points": np.zeros((1, 3))}
    with pytest.raises(error, match=sentence):
        sample_volume(**(right | change))
