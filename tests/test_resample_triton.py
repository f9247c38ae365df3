"""The Triton kernel in its interpreter, told what the launcher would tell it, and the reference."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy learns bfloat16
import numpy as np
import pytest
import torch
import triton  # noqa: F401  whole, before the interpreter is asked for: other tests compile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scanside.kernels import Geometry, resize_matrix
from scanside.kernels import launch_plan as launch_plan_module
from scanside.kernels.geometry import LARGEST_CUBE
from scanside.kernels.launch_plan import launch_plan
from scanside.kernels.resample_reference import REACH, resample_reference
from scanside.kernels.variants import ARGUMENTS, BLOCK, TOKEN_TYPES, VOLUME_TYPES

# Half a unit in the last place; a whole one of bfloat16, which the interpreter cuts off
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-7}
EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def kernel() -> Any:
    """The kernel as a function of the interpreter, in a module of its own: others compile it."""
    path = Path(launch_plan_module.__file__).with_name("resample_triton.py")
    spec = importlib.util.spec_from_file_location("interpreted_resample_triton", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
    return module.resample_kernel


def as_torch(array: NDArray[Any] | None) -> Any:
    if array is None:
        return 0
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def interpret(
    kernel: Any,
    volumes: NDArray[Any],
    geometry: Geometry,
    matrix: NDArray[np.float64],
    dtype: str,
    *,
    mean: NDArray[np.float32] | None = None,
    inv_std: NDArray[np.float32] | None = None,
    **numbers: float,
) -> NDArray[Any]:
    """Tokens (B, N, C) of volumes (B, X, Y, Z), whose buffer starts as NaN."""
    tokens = np.full((len(volumes), *geometry.shape), np.nan, np.dtype(dtype))
    plan = launch_plan(
        geometry,
        shape=volumes.shape,
        strides=volumes.strides,
        model_to_source=matrix,
        mean=mean is not None,
        inv_std=inv_std is not None,
        **numbers,
    )
    turns = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in volumes.strides)
    # torch has no negative strides; the lowest address is where the launcher's pointer stands
    arrays = (volumes[turns], np.ascontiguousarray(geometry.corners.T), mean, inv_std, tokens)
    pointers = {name: as_torch(a) for (name, *_), a in zip(ARGUMENTS, arrays, strict=False)}
    if 0 not in plan.programs:
        kernel[plan.programs](**pointers, **plan.values, BLOCK=BLOCK)
    return tokens


def check(
    kernel: Any,
    volumes: NDArray[Any],
    geometry: Geometry,
    matrix: NDArray[np.float64],
    dtype: str = "float32",
    *,
    mean: NDArray[np.float32] | None = None,
    inv_std: NDArray[np.float32] | None = None,
    slope: float = 1.0,
    inter: float = 0.0,
    fill: float = 0.0,
) -> NDArray[Any]:
    """Compare with the reference: 1e-5 of the largest term, and the rounding of the tokens."""
    found = interpret(
        kernel,
        volumes,
        geometry,
        matrix,
        dtype,
        mean=mean,
        inv_std=inv_std,
        slope=slope,
        inter=inter,
        fill=fill,
    )
    expected = np.empty(found.shape)
    for volume, out in zip(volumes, expected, strict=True):
        resample_reference(volume, geometry, matrix, slope, inter, mean, inv_std, fill, out)
    largest = np.abs(volumes.astype(float)).max() * abs(slope) + abs(inter) + abs(fill)
    largest += 0 if mean is None else float(np.abs(mean).max(initial=0))
    largest *= 1 if inv_std is None else float(inv_std.max(initial=0))
    allowed = 1e-5 * largest + ROUNDING[dtype] * np.abs(expected) + ROUNDING[dtype] * 2.0**-14
    assert not np.isnan(found.astype(float)).any()
    certain = ~on_an_edge(geometry, matrix, volumes)
    assert (np.abs(found.astype(float) - expected) <= allowed)[:, certain].all()
    return found


def on_an_edge(
    geometry: Geometry, matrix: NDArray[np.float64], volumes: NDArray[Any]
) -> NDArray[np.bool_]:
    """Points so near to the limit that rounding decides between the edge and `fill`."""
    points = geometry.voxels @ matrix[:3, :3].T + matrix[:3, 3]
    sizes = np.array(volumes.shape[1:])
    outer = np.minimum(np.abs(points + REACH), np.abs(points - sizes + 1 - REACH))
    exact = np.array_equal(matrix * 2, np.rint(matrix * 2))
    return np.zeros(points.shape[:-1], bool) if exact else (outer < 2e-6).any(axis=-1)


def stored(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, order: str
) -> NDArray[Any]:
    """Volumes (B, X, Y, Z), each in the memory order that is asked for."""
    values = rng.normal(size=shape) * 1000
    if dtype == "uint16":
        values = np.abs(values) + 33000  # beyond what int16 holds
    if order == "C":
        return values.astype(dtype)
    if order == "F":
        return np.ascontiguousarray(values.astype(dtype).T.swapaxes(0, 3)).swapaxes(0, 3).T
    wide = np.zeros((*shape[:3], 2 * shape[3]), dtype)
    wide[:, ::-1, :, ::2] = values.astype(dtype)
    return wide[:, ::-1, :, ::2]


def rotation(axis: int, degrees: float) -> NDArray[np.float64]:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = (n for n in range(3) if n != axis)
    matrix = np.eye(4)
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A small volume, a grid that need not fit its cubes, and a mapping between them."""
    size = st.integers(1, 9)
    shape = (draw(st.integers(1, 3)), draw(size), draw(size), draw(size))
    grid = draw(size), draw(size), draw(size)
    cube = draw(st.integers(1, 12))
    empty = Geometry(grid=grid, cube=cube, active=np.array([], int))
    candidates = range(int(np.prod(empty.cube_grid)))
    active = draw(st.lists(st.sampled_from(candidates), unique=True, max_size=12))
    geometry = Geometry(
        grid=grid,
        cube=cube,
        active=np.array(active, int),
        pad=draw(st.sampled_from(["back", "front", "both"])),
    )
    matrix = resize_matrix(shape[1:], grid, draw(st.booleans()))
    if draw(st.booleans()):
        matrix[:3] = matrix[list(draw(st.permutations(range(3))))]
        matrix = matrix @ rotation(draw(st.integers(0, 2)), draw(st.floats(-180, 180)))
        matrix[:3, 3] += draw(st.floats(-3, 3))
    return {
        "seed": draw(st.integers(0, 99)),
        "shape": shape,
        "geometry": geometry,
        "matrix": matrix,
        "stored": draw(st.sampled_from(VOLUME_TYPES)),
        "dtype": draw(st.sampled_from(TOKEN_TYPES)),
        "order": draw(st.sampled_from(["C", "F", "flipped"])),
        "statistics": (draw(st.booleans()), draw(st.booleans())),
    }


@EXAMPLES
@given(case=cases())
def test_kernel_equals_the_reference(kernel: Any, case: dict[str, Any]):
    rng = np.random.default_rng(case["seed"])
    geometry = case["geometry"]
    has_mean, has_inv_std = case["statistics"]
    mean = rng.normal(size=geometry.shape).astype(np.float32)
    inv_std = np.maximum(rng.normal(size=geometry.shape), 0).astype(np.float32)  # half are masked
    check(
        kernel,
        stored(rng, case["shape"], case["stored"], case["order"]),
        geometry,
        case["matrix"],
        case["dtype"],
        mean=mean if has_mean else None,
        inv_std=inv_std if has_inv_std else None,
        slope=0.01,
        inter=-2.0,
        fill=5.0,
    )


@pytest.mark.parametrize(
    ("cube", "order"), [*itertools.product([1, 10, 12, 14], ["C", "F", "flipped"]), (33, "F")]
)
def test_cubes_of_every_size_in_every_memory_order(kernel: Any, cube: int, order: str):
    rng = np.random.default_rng(0)
    candidates = int(np.prod([-(-size // cube) for size in (30, 16, 17)]))
    active = rng.permutation(candidates)[: 1500 if cube == 1 else 4]
    geometry = Geometry(grid=(30, 16, 17), cube=cube, active=active, pad="front")
    matrix = resize_matrix((23, 24, 19), geometry.grid) @ rotation(2, 7)
    check(kernel, stored(rng, (1, 23, 24, 19), "int16", order), geometry, matrix, slope=0.1)


def test_a_masked_voxel_is_zero_whatever_the_volume_holds(kernel: Any):
    geometry = Geometry(grid=(4, 4, 4), cube=2, active=np.arange(8))
    inv_std = np.ones(geometry.shape, np.float32)
    inv_std[3] = 0
    volumes = np.full((1, 4, 4, 4), 2, np.float32)
    volumes[0, :2, 2:, 2:] = np.nan  # cube 3
    tokens = interpret(kernel, volumes, geometry, np.eye(4), "float32", inv_std=inv_std)
    assert (tokens[0, 3] == 0).all()
    assert (tokens[0, 4] == 2).all()


def test_half_a_voxel_outside_is_the_edge_and_further_out_is_fill(kernel: Any):
    geometry = Geometry(grid=(1, 1, 1), cube=1, active=np.array([0]))
    volumes = np.full((1, 2, 2, 2), 5, np.float32)
    for shift, expected in ((-0.5, 5), (-0.501, -1), (1.5, 5), (1.501, -1)):
        matrix = np.eye(4)
        matrix[0, 3] = shift
        assert interpret(kernel, volumes, geometry, matrix, "float32", fill=-1).item() == expected


def test_nothing_is_launched_for_an_empty_active_list():
    geometry = Geometry(grid=(4, 4, 4), cube=2, active=np.array([], int))
    plan = launch_plan(
        geometry, shape=(1, 4, 4, 4), strides=(128, 32, 8, 2), model_to_source=np.eye(4)
    )
    assert 0 in plan.programs


def test_a_batch_is_divided_among_programs_and_every_volume_made_once(kernel: Any):
    rng = np.random.default_rng(0)
    geometry = Geometry(grid=(20, 20, 20), cube=20, active=np.array([0]))
    volumes = stored(rng, (7, 6, 5, 4), "float32", "F")
    check(kernel, volumes, geometry, resize_matrix((6, 5, 4), geometry.grid))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"slope": 1e39}, r"'slope' must be finite in float32; got 1e\+39"),
        (
            {"strides": (0, 1 << 31, 4, 2)},
            "'volume' spans 6442450962 bytes of memory; on a GPU less",
        ),
        ({"model_to_source": np.eye(4) * 1e9}, r"'model_to_source' leads 4e\+09 voxels away"),
    ],
)
def test_numbers_that_the_kernel_cannot_hold_are_refused(change: dict[str, Any], sentence: str):
    right = {"shape": (1, 4, 4, 4), "strides": (128, 32, 8, 2), "model_to_source": np.eye(4)}
    geometry = Geometry(grid=(4, 4, 4), cube=2, active=np.array([0]))
    with pytest.raises(ValueError, match=sentence):
        launch_plan(geometry, **(right | change))


def test_a_row_of_the_largest_cube_fits_in_a_block():
    assert LARGEST_CUBE <= BLOCK
