"""Resample and patchify: the native code against the reference, and both against others'."""

import itertools

import ml_dtypes
import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.processing import resample_from_to
from scipy import ndimage
from torch.nn import functional as F

from scanside.kernels import Geometry, Resampler, resample_patchify, resize_matrix
from scanside.kernels.native import instruction_sets, resample_native
from scanside.kernels.resample_reference import resample_reference

IMPLEMENTATIONS = ("cpu", "reference")
TYPES = ("int16", "uint16", "float16", "float32")


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


def turned() -> np.ndarray:
    """A turn about two axes with spacings that differ."""
    matrix = rotation(0, 20) @ rotation(2, -35) @ np.diag([1.1, 0.9, 1.3, 1])
    matrix[:3, 3] = 3.3, 5.2, 2.1
    return matrix


def cubes_of(grid: tuple[int, int, int], cube: int = 5) -> Geometry:
    """All cubes of a grid, which hang over its edge."""
    return Geometry(grid=grid, cube=cube, active=np.arange(np.prod([-(-n // cube) for n in grid])))


def uncut(tokens: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The grid that tokens were cut from."""
    volume = np.full(geometry.grid, np.nan, np.float64)
    volume[tuple(geometry.voxels[geometry.in_grid].T)] = tokens[geometry.in_grid]
    return volume


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("shape", "grid"),
    [((9, 11, 7), (13, 8, 7)), ((5, 4, 3), (16, 17, 18)), ((20, 21, 22), (3, 4, 5))],
)
def test_resize_equals_torch_interpolate_edges_included(
    shape: tuple[int, int, int], grid: tuple[int, int, int], align_corners: bool, impl: str
):
    volume = random_volume(shape)
    expected = F.interpolate(
        torch.from_numpy(volume)[None, None], grid, mode="trilinear", align_corners=align_corners
    ).numpy()
    tokens = resample_patchify(
        volume,
        cubes_of(grid),
        model_to_source=resize_matrix(shape, grid, align_corners),
        impl=impl,
    )
    tokens = uncut(tokens, cubes_of(grid))
    # torch computes its weights in float32
    assert tokens == pytest.approx(expected[0, 0], rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_affine_equals_torch_grid_sample_edges_included(impl: str):
    shape, grid = (17, 19, 23), (12, 14, 16)
    volume, matrix = random_volume(shape), turned()
    matrix[:3, 3] += 0.2, 5.2, -2.4
    geometry = cubes_of(grid)
    voxels = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1)
    points = voxels @ matrix[:3, :3].T + matrix[:3, 3]
    outside = ((points < -0.5) | (points > np.array(shape) - 0.5)).any(-1)
    # grid_sample wants -1..1 from the outer face to the outer face, last axis first
    normal = ((2 * points + 1) / np.array(shape) - 1)[..., ::-1].astype(np.float32)
    expected = F.grid_sample(
        torch.from_numpy(volume)[None, None],
        torch.from_numpy(normal.copy())[None],
        padding_mode="border",
        align_corners=False,
    ).numpy()[0, 0]
    expected[outside] = 4000
    tokens = resample_patchify(volume, geometry, model_to_source=matrix, fill=4000, impl=impl)
    at_edge = ~outside & ((points < 0) | (points > np.array(shape) - 1)).any(-1)
    assert at_edge.sum() > 50
    assert outside.sum() > 50
    # torch computes its points in float32
    assert uncut(tokens, geometry) == pytest.approx(expected, rel=1e-4, abs=2e-2)


def test_affine_equals_nibabel_where_the_point_lies_inside():
    source = nib.Nifti1Image(random_volume((21, 24, 19)), np.diag([2.0, 1.8, 2.2, 1]))
    target = turned() @ np.diag([1.5, 1.7, 1.6, 1])
    target[:3, 3] = 8, 3, 6
    grid = (12, 14, 10)
    # far outside, so that a value mixed with it is seen
    expected = resample_from_to(source, (grid, target), order=1, cval=1e9).get_fdata()
    geometry = cubes_of(grid)
    tokens = resample_patchify(
        source.get_fdata(dtype=np.float32),
        geometry,
        model_to_source=np.linalg.inv(source.affine) @ target,
    )
    inside = np.abs(expected) < 1e4
    assert 100 < inside.sum() < inside.size
    assert uncut(tokens, geometry)[inside] == pytest.approx(expected[inside], rel=1e-5, abs=1e-2)


def test_affine_equals_scipy_where_the_point_lies_inside():
    shape, grid = (17, 19, 23), (12, 14, 16)
    volume = random_volume(shape)
    matrix = turned()
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


def test_a_batch_gives_the_tokens_of_each_volume():
    geometry = Geometry(grid=(9, 8, 7), cube=4, active=np.array([5, 0, 11]))
    volumes = np.stack([random_volume((7, 8, 9)) * k for k in (1, 2, -3)])
    for impl, matrix in itertools.product(IMPLEMENTATIONS, (turned(), np.eye(4))):
        one = [resample_patchify(v, geometry, model_to_source=matrix, impl=impl) for v in volumes]
        for batch in (volumes, np.asfortranarray(volumes), volumes[::-1].copy()[::-1]):
            tokens = resample_patchify(batch, geometry, model_to_source=matrix, impl=impl)
            assert tokens.shape == (3, 3, 64)
            # the memory layout decides the order of the sums
            assert tokens == pytest.approx(np.stack(one), rel=1e-5, abs=1e-2)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nan_spoils_only_what_it_is_mixed_into(impl: str):
    volume = random_volume((9, 9, 9))
    volume[4, 4, 4] = np.nan
    geometry = cubes_of((9, 9, 9))
    inv_std = np.ones(geometry.shape)
    inv_std[:, ::7] = 0
    matrix = np.eye(4)
    matrix[:3, 3] = 0.25, 0.5, -20
    for shift in (0.75, -20):
        matrix[2, 3] = shift
        tokens = resample_patchify(
            volume, geometry, model_to_source=matrix, inv_std=inv_std, fill=3, impl=impl
        )
        assert (tokens[:, ::7] == 0).all()
        spoilt = uncut(np.where(inv_std > 0, tokens, -1), geometry)
        mixed = np.zeros(geometry.grid, bool)
        mixed[3:5, 3:5, 3:5] = shift > 0
        masked = uncut(np.where(inv_std > 0, 0, 1), geometry) > 0
        assert (np.isnan(spoilt) == (mixed & ~masked)).all()


def test_a_resampler_gives_what_the_function_gives_for_places_that_change():
    geometry = cubes_of((11, 9, 10))
    rng = np.random.default_rng(2)
    mean, inv_std = rng.normal(size=geometry.shape), rng.random(geometry.shape)
    resampler = Resampler(geometry, mean=mean, inv_std=inv_std)
    for shape, matrix in [
        ((9, 9, 9), turned()),
        ((8, 9, 9), turned()),
        ((9, 9, 9), np.eye(4)),
        ((9, 9, 9), turned()),
    ]:
        volume = np.asfortranarray(random_volume(shape))
        expected = resample_patchify(
            volume, geometry, model_to_source=matrix, mean=mean, inv_std=inv_std, impl="reference"
        )
        tokens = resampler(volume, model_to_source=matrix)
        assert tokens == pytest.approx(expected, rel=1e-5, abs=1e-2)


@st.composite
def mappings(draw: st.DrawFn, shape: tuple[int, ...], grid: tuple[int, ...]) -> np.ndarray:
    """A resize, the same with its axes swapped and flipped, or any turn, scale and shift."""
    kind = draw(st.sampled_from(["resize", "permuted", "turned"]))
    if kind == "resize":
        return resize_matrix(shape, grid, draw(st.booleans()))
    if kind == "permuted":
        axes = draw(st.permutations(range(3)))
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        resize = resize_matrix([shape[a] for a in axes], grid, draw(st.booleans()))
        matrix[axes] = resize[:3]
        for axis in range(3):
            if draw(st.booleans()):
                matrix[axis] = [0, 0, 0, shape[axis] - 1] - matrix[axis]
        matrix[:3, 3] += draw(st.sampled_from([0, 0.3, -1.7]))
        return matrix
    matrix = np.eye(4)
    for axis in range(3):
        matrix = matrix @ rotation(axis, draw(st.floats(-180, 180)))
    matrix = matrix @ np.diag([*(draw(st.floats(0.3, 4)) for _ in range(3)), 1])
    # centre upon centre, about
    centres = (np.array(shape) - 1) / 2 - matrix[:3, :3] @ ((np.array(grid) - 1) / 2)
    matrix[:3, 3] = centres + [draw(st.floats(-3, 3)) for _ in range(3)]
    return matrix


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, Geometry, dict[str, object], int]:
    """A volume in some type and layout, a geometry, the other arguments, and a seed."""
    sizes = st.tuples(*[st.one_of(st.just(1), st.integers(2, 34))] * 3)
    shape, grid = draw(sizes), draw(sizes)
    cube = draw(st.sampled_from([1, 2, 3, 4, 7, 10, 12, 14, 19]))
    pad = draw(st.sampled_from(["back", "front", "both"]))
    candidates = int(np.prod([-(-n // cube) for n in grid]))
    seed = draw(st.integers(0, 1 << 31))
    active = np.random.default_rng(seed).permutation(candidates)
    few = draw(st.integers(0, min(candidates, max(1, 6000 // cube**3))))
    geometry = Geometry(grid=grid, cube=cube, active=active[:few], pad=pad)
    rng = np.random.default_rng(seed)
    values = (rng.random(shape) * 2000 - 800 * draw(st.booleans())).clip(
        0 if draw(st.booleans()) else -800
    )
    dtype = draw(st.sampled_from(TYPES))
    volume = np.asarray((np.abs(values) if dtype == "uint16" else values).astype(dtype))
    volume = laid_out(volume, draw(st.sampled_from(["C", "F", "every second", "backwards"])))
    arguments: dict[str, object] = {
        "model_to_source": draw(mappings(shape, grid)),
        "slope": draw(st.sampled_from([1.0, 0.5, -3.0])),
        "inter": draw(st.sampled_from([0.0, -100.0])),
        "fill": draw(st.sampled_from([0.0, 500.0])),
    }
    if draw(st.booleans()):
        arguments["mean"] = rng.normal(500, 300, geometry.shape)
    if draw(st.booleans()):
        kept = rng.random(geometry.shape) < 0.8
        arguments["inv_std"] = kept * rng.random(geometry.shape)
    return volume, geometry, arguments, seed


def laid_out(volume: np.ndarray, layout: str) -> np.ndarray:
    """The same values in another memory layout."""
    if layout in "CF":
        return np.asarray(volume, order=layout)
    if layout == "backwards":
        return np.asfortranarray(volume[::-1, :, ::-1])[::-1, :, ::-1]
    wide = np.zeros([2 * n for n in volume.shape], volume.dtype, order="F")
    wide[::2, ::2, ::2] = volume
    return wide[::2, ::2, ::2]


# Half a unit in the last place of each type, and 1e-5, to which fp32 is held, both relative
PLACES = {np.float32: 1e-5, np.float16: 2**-11 + 1e-5, ml_dtypes.bfloat16: 2**-8 + 1e-5}


@settings(deadline=None, max_examples=400, derandomize=True)
@given(
    problems(),
    st.sampled_from(list(PLACES)),
    st.sampled_from(instruction_sets()),
    st.integers(1, 3),
)
def test_native_code_equals_the_reference(
    problem: tuple[np.ndarray, Geometry, dict[str, object], int],
    dtype: type,
    instruction_set: str,
    batch: int,
):
    volume, geometry, arguments, _ = problem
    volumes = np.stack([volume, volume[::-1], volume // 2])[:batch]
    if batch == 1:
        volumes = volume[None]  # in its own layout, which stacking loses
    numbers = [arguments[name] for name in ("model_to_source", "slope", "inter")]
    mean, inv_std = (checked(arguments.get(name)) for name in ("mean", "inv_std"))
    found = np.full((batch, *geometry.shape), np.nan, dtype)
    resample_native(
        volumes, geometry, *numbers, mean, inv_std, arguments["fill"], found,
        instruction_set=instruction_set,
    )  # fmt: skip
    expected = np.full(found.shape, np.nan)
    for one, tokens in zip(volumes, expected, strict=True):
        resample_reference(one, geometry, *numbers, mean, inv_std, arguments["fill"], tokens)
    # where terms cancel, rounding is that of the largest of them, before the division by std
    largest = 2000 * abs(arguments["slope"]) + abs(arguments["inter"]) + arguments["fill"]
    cancelled = 1e-6 * (largest + (0 if mean is None else np.abs(mean).max(initial=0)))
    cancelled *= 1 if inv_std is None else inv_std
    np.testing.assert_array_less(
        np.abs(found.astype(float) - expected),
        PLACES[dtype] * np.abs(expected) + cancelled + 2.0**-24,
    )
    assert (found[:, ~geometry.in_grid] == 0).all()


def checked(statistics: object) -> np.ndarray | None:
    """Statistics as the face hands them on."""
    return None if statistics is None else np.ascontiguousarray(statistics, np.float32)


def test_an_axis_of_one_voxel_may_be_collapsed_and_no_other():
    geometry = Geometry(grid=(4, 4, 4), cube=2, active=np.arange(8))
    slice_ = np.ones((4, 4, 1), np.float32)
    along = resize_matrix(slice_.shape, geometry.grid, align_corners=True)
    assert along[2, 2] == 0
    assert (resample_patchify(slice_, geometry, model_to_source=along) == 1).all()
    across = along.copy()
    across[0, 0] = 0
    for impl in IMPLEMENTATIONS:
        with pytest.raises(ValueError, match="'model_to_source' is singular"):
            resample_patchify(slice_, geometry, model_to_source=across, impl=impl)


def test_out_in_the_memory_of_the_volume_is_refused():
    geometry = Geometry(grid=(4, 4, 4), cube=4, active=np.array([0]))
    memory = np.zeros((4, 4, 4), np.float32)
    with pytest.raises(ValueError, match="'out' must not lie in the memory of 'volume'"):
        resample_patchify(
            memory, geometry, model_to_source=np.eye(4), out=memory.reshape(geometry.shape)
        )


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
        ({"volume": np.zeros((0, 4, 4, 4), np.int16)}, ValueError, "none empty"),
        ({"model_to_source": np.eye(3)}, ValueError, "'model_to_source' must be a finite 4x4"),
        ({"model_to_source": np.full((4, 4), np.nan)}, ValueError, "it holds NaN or infinity"),
        ({"model_to_source": SINGULAR}, ValueError, "'model_to_source' is singular"),
        ({"model_to_source": 2 * np.eye(4)}, ValueError, "end with the row 0 0 0 1"),
        ({"volume": [[[1]]]}, TypeError, "'volume' must be a NumPy array; got list"),
        ({"model_to_source": "identity"}, TypeError, "'model_to_source' must be a 4x4 matrix of"),
        ({"slope": np.nan}, ValueError, "'slope' must be finite"),
        ({"slope": 1e39}, ValueError, r"'slope' must be finite in float32; got 1e\+39"),
        ({"inter": "3"}, TypeError, "'inter' must be a number; got str"),
        ({"mean": np.zeros((2, 9))}, ValueError, r"'mean' must have the shape \(2, 8\)"),
        ({"inv_std": np.full((2, 8), np.inf)}, ValueError, "'inv_std' must be finite"),
        ({"mean": np.full((2, 8), 1e300)}, ValueError, "'mean' must be finite in float32"),
        ({"inv_std": np.full((2, 8), -1.0)}, ValueError, "'inv_std' must be at least 0"),
        ({"inv_std": np.full((2, 8), np.nan)}, ValueError, "'inv_std' must be finite"),
        ({"mean": [0.0]}, TypeError, "'mean' must be a NumPy array; got list"),
        ({"mean": np.zeros((2, 8), complex)}, TypeError, "'mean' must hold real numbers; got comp"),
        ({"out": [0.0]}, TypeError, "'out' must be a NumPy array; got list"),
        ({"impl": "magic"}, ValueError, "'impl' must be one of auto, cuda, cpu, reference"),
        ({"impl": "cuda"}, ValueError, "'kernels' must name a folder of compiled kernels"),
        ({"threads": 0}, ValueError, "'threads' must be 1 to 1024; got 0"),
        ({"fill": np.inf}, ValueError, "'fill' must be finite"),
        ({"dtype": np.int16}, TypeError, "'dtype' must be float32, float16, bfloat16"),
        ({"dtype": "float33"}, TypeError, "NumPy knows no 'float33'"),
        ({"out": np.zeros((2, 8))}, ValueError, r"'out' must be \(2, 8\) float32"),
        ({"out": np.zeros((8, 2), np.float32).T}, ValueError, "'out' must be C-contiguous"),
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
