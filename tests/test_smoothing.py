"""Smoothing beside SciPy's."""

import numpy as np
import pytest
from scipy import ndimage

from scanside.runtime.realtime.smoothing import smooth


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_smoothing_equals_scipy(dtype: str, order: str):
    values = np.random.default_rng(0).uniform(0, 1000, (11, 9, 14)).astype(dtype, order=order)
    found = smooth(values, (1.0, 0.0, 2.0))
    expected = ndimage.gaussian_filter1d(
        values.astype(float), 1.0, axis=0, mode="nearest", radius=3
    )
    expected = ndimage.gaussian_filter1d(expected, 2.0, axis=2, mode="nearest", radius=5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous == values.flags.c_contiguous


def test_without_smoothing_it_is_a_copy():
    values = np.ones((3, 4, 5), np.float32)
    found = smooth(values, (0.0, 0.0, 0.0))
    assert found is not values
    assert not np.shares_memory(found, values)
    assert (found == values).all()
