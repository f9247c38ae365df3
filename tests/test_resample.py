"""Resample and patchify against other people's implementations of the same operation."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from scanside.kernels import Geometry, resample_patchify, resize_matrix


def whole_grid(grid: tuple[int, int, int]) -> Geometry:
    """Tokens of a single voxel each, all of them: the resampled grid as a flat vector."""
    return Geometry(grid=grid, cube=1, active=np.arange(np.prod(grid)))


def random_volume(shape: tuple[int, int, int], dtype: str = "float32") -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) * 1000).astype(dtype)


def rotation(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = (n for n in range(3) if n != axis)
    matrix = np.eye(4)
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("shape", "grid"),
    [((9, 11, 7), (13, 8, 7)), ((5, 4, 3), (16, 17, 18)), ((20, 21, 22), (3, 4, 5))],
)
def test_resize_equals_torch_interpolate_edges_included(
    shape: tuple[int, int, int], grid: tuple[int, int, int], align_corners: bool
):
    volume = random_volume(shape)
    expected = F.interpolate(
        torch.from_numpy(volume)[None, None], grid, mode="trilinear", align_corners=align_corners
    ).numpy()
    tokens = resample_patchify(
        volume, whole_grid(grid), model_to_source=resize_matrix(shape, grid, align_corners)
    )
    # torch computes its weights in float32
    assert tokens.reshape(grid) == pytest.approx(expected[0, 0], rel=1e-4, abs=1e-2)


def test_affine_equals_scipy_where_the_point_lies_inside():
    shape, grid = (17, 19, 23), (12, 14, 16)
    volume = random_volume(shape)
    matrix = rotation(0, 20) @ rotation(2, -35) @ np.diag([1.1, 0.9, 1.3, 1])
    matrix[:3, 3] = 3.3, 5.2, 2.1
    expected = ndimage.affine_transform(
        volume.astype(float), matrix, output_shape=grid, order=1, cval=np.nan
    )
    tokens = resample_patchify(
        volume, whole_grid(grid), model_to_source=matrix, fill=np.float32(7e6)
    ).reshape(grid)
    inside = ~np.isnan(expected)
    assert 100 < inside.sum() < inside.size
    # float32 output of values near 1000
    assert tokens[inside] == pytest.approx(expected[inside], rel=1e-5, abs=1e-3)


def test_a_point_half_a_voxel_outside_is_the_edge_and_further_out_is_fill():
    volume = np.full((2, 2, 2), 5, np.float32)
    shifted = np.eye(4)
    shifted[0, 3] = -0.5
    near = resample_patchify(volume, whole_grid((1, 1, 1)), model_to_source=shifted, fill=-1)
    shifted[0, 3] = -0.501
    far = resample_patchify(volume, whole_grid((1, 1, 1)), model_to_source=shifted, fill=-1)
    assert (near.item(), far.item()) == (5, -1)


def test_fill_is_in_units_after_slope_and_intercept():
    away = np.eye(4)
    away[:3, 3] = 100
    volume = np.ones((2, 2, 2), np.int16)
    token = resample_patchify(
        volume, whole_grid((1, 1, 1)), model_to_source=away, slope=3, inter=4, fill=2
    )
    assert token.item() == 2


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float16", "float32"])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_stored_type_and_memory_layout_do_not_matter(dtype: str, order: str):
    values = np.abs(random_volume((8, 9, 10))).round().clip(0, 2000)
    volume = np.asarray(values.astype(dtype), order=order if order != "strided" else "C")
    if order == "strided":
        volume = np.repeat(volume, 2, axis=1)[:, ::2][::-1][::-1]
    geometry = Geometry(grid=(7, 7, 7), cube=3, active=np.array([0, 5, 13, 26]))
    matrix = resize_matrix(volume.shape, geometry.grid)
    found, expected = (
        resample_patchify(v, geometry, model_to_source=matrix, slope=0.5, inter=-3)
        for v in (volume, values.astype(np.float32))
    )
    assert found == pytest.approx(expected, rel=1e-6)


def test_statistics_normalise_and_padding_stays_zero():
    geometry = Geometry(grid=(5, 5, 5), cube=3, active=np.array([0, 7]))
    rng = np.random.default_rng(1)
    mean, inv_std = rng.normal(size=geometry.shape), rng.random(geometry.shape)
    inv_std[0, 3] = 0
    volume = random_volume((5, 5, 5))
    plain = resample_patchify(volume, geometry, model_to_source=np.eye(4))
    tokens = resample_patchify(
        volume, geometry, model_to_source=np.eye(4), mean=mean, inv_std=inv_std
    )
    expected = np.where(geometry.in_grid, (plain - mean) * inv_std, 0)
    assert not geometry.in_grid.all()
    assert tokens == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert tokens[0, 3] == 0


def test_a_single_slice_can_be_resized_onto_several():
    volume = random_volume((6, 6, 1))
    for align_corners in (False, True):
        matrix = resize_matrix(volume.shape, (6, 6, 4), align_corners)
        grid = resample_patchify(volume, whole_grid((6, 6, 4)), model_to_source=matrix)
        assert (grid.reshape(6, 6, 4) == volume).all()


def test_an_empty_active_list_gives_no_tokens():
    geometry = Geometry(grid=(4, 4, 4), cube=2, active=np.array([], int))
    tokens = resample_patchify(random_volume((4, 4, 4)), geometry, model_to_source=np.eye(4))
    assert tokens.shape == (0, 8)


def test_out_is_filled_and_returned():
    geometry = Geometry(grid=(4, 4, 4), cube=2, active=np.arange(8))
    out = np.full(geometry.shape, np.nan, np.float16)
    tokens = resample_patchify(
        np.ones((4, 4, 4), np.int16),
        geometry,
        model_to_source=np.eye(4),
        dtype=np.float16,
        out=out,
    )
    assert tokens is out
    assert (out == 1).all()


GEOMETRY = Geometry(grid=(4, 4, 4), cube=2, active=np.arange(2))
SINGULAR = np.diag([1.0, 1, 1, 1])
SINGULAR[2] = SINGULAR[1]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"volume": np.zeros((4, 4), np.float32)}, ValueError, "'volume' must have three axes"),
        ({"volume": np.zeros((4, 0, 4), np.float32)}, ValueError, "none empty"),
        ({"volume": np.zeros((4, 4, 4), np.int32)}, TypeError, "'volume' must be int16.*got int32"),
        ({"volume": np.zeros((4, 4, 4), ">i2")}, TypeError, "native byte order"),
        ({"model_to_source": np.eye(3)}, ValueError, "'model_to_source' must be a finite 4x4"),
        ({"model_to_source": SINGULAR}, ValueError, "'model_to_source' is singular"),
        ({"model_to_source": 2 * np.eye(4)}, ValueError, "end with the row 0 0 0 1"),
        ({"slope": np.nan}, ValueError, "'slope' must be finite"),
        ({"mean": np.zeros((2, 9))}, ValueError, r"'mean' must have the shape \(2, 8\)"),
        ({"inv_std": np.full((2, 8), np.inf)}, ValueError, "'inv_std' must be finite"),
        ({"inv_std": np.full((2, 8), -1.0)}, ValueError, "'inv_std' must be at least 0"),
        ({"impl": "magic"}, ValueError, "'impl' must be auto or one of reference"),
        ({"dtype": np.int16}, TypeError, "'dtype' must be float32, float16, bfloat16"),
        ({"out": np.zeros((2, 8))}, ValueError, r"'out' must be \(2, 8\) float32"),
    ],
)
def test_a_wrong_argument_is_named(
    change: dict[str, object], error: type[Exception], sentence: str
):
    right = {
        "volume": np.zeros((4, 4, 4), np.float32),
        "geometry": GEOMETRY,
        "model_to_source": np.eye(4),
    }
    with pytest.raises(error, match=sentence):
        resample_patchify(**(right | change))
