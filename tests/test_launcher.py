"""The launcher as far as it goes without a GPU: what it packs, and what it refuses before a launch.

`benchmarks/resample_gpu.py` launches what is compiled here, on a machine with a GPU.
"""

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scanside.kernels import Geometry, cuda_driver, resample_patchify
from scanside.kernels.ahead_of_time import compile_kernels
from scanside.kernels.device_arguments import (
    DeviceArray,
    check_device_arrays,
    packed,
    plan_launch,
)
from scanside.kernels.host_to_host import compact
from scanside.kernels.launcher import CudaResampler
from scanside.kernels.variants import ARGUMENTS, SCRATCH, Variant

GEOMETRY = Geometry(grid=(6, 6, 6), cube=3, active=np.array([5, 0, 7]))
INT16, FLOAT32 = np.dtype(np.int16), np.dtype(np.float32)
VOLUMES = DeviceArray(pointer=0x7F0000000000, shape=(2, 6, 6, 6), dtype=INT16)
TOKENS = DeviceArray(pointer=0x7F0000100000, shape=(2, 3, 27), dtype=FLOAT32)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One variant for one architecture. Read only."""
    return compile_kernels(tmp_path_factory.mktemp("kernels"), [Variant("int16", "float32")], [90])


def test_importing_the_launcher_loads_neither_torch_nor_triton_nor_cuda():
    code = "import scanside.kernels.launcher, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {module.split(".")[0] for module in done.stdout.split()}
    assert loaded & {"torch", "triton", "cuda"} == set()


def test_the_driver_would_read_every_argument_where_the_table_points():
    matrix = np.eye(4)
    matrix[0, 3] = -1.25
    plan = plan_launch(
        GEOMETRY, VOLUMES, matrix, slope=0.5, inter=-3, fill=7, mean=True, inv_std=False
    )
    values, table = packed(plan, (11, 12, 13, 0, 15))
    kinds = [kind for _, kind, count in ARGUMENTS for _ in range(count)] + ["u64"] * len(SCRATCH)
    types: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
    read = [
        types.get(kind, ctypes.c_uint64).from_address(address).value
        for kind, address in zip(kinds, table, strict=True)
    ]
    assert len(values) == len(table)
    assert read[:5] == [11, 12, 13, 0, 15]
    assert read[5:9] == [1 << 32, 0, 0, -5 << 30]
    assert read[17:21] == [432, 72, 12, 2]
    assert read[-7:] == [1, 0, 0.5, -3, 7, 0, 0]


def test_a_flipped_volume_is_read_from_its_lowest_address():
    flipped = DeviceArray(
        pointer=VOLUMES.pointer, shape=(6, 6, 6), dtype=INT16, strides=(72, -12, 2)
    )
    plan = plan_launch(
        GEOMETRY, flipped, np.eye(4), slope=1, inter=0, fill=0, mean=False, inv_std=False
    )
    assert plan.skipped_bytes == -60
    assert plan.values["strides"] == (72, 12, 2)
    assert plan.values["matrix"][4:8] == (0, -1 << 32, 0, 5 << 32)


def described(**changes: Any) -> Any:
    class Array:
        __cuda_array_interface__ = {
            "shape": (3, 27),
            "typestr": "<f4",
            "data": (4096, False),
            "strides": None,
            "version": 3,
        } | changes

    return Array()


def test_arrays_of_other_libraries_are_described_by_their_interface():
    array = DeviceArray.of(described(strides=(112, 4)))
    assert array == DeviceArray(pointer=4096, shape=(3, 27), dtype=FLOAT32, strides=(112, 4))
    assert DeviceArray.of(described()).steps == (108, 4)
    with pytest.raises(TypeError, match="expected an array in device memory; got ndarray"):
        DeviceArray.of(np.zeros(3))


@pytest.mark.parametrize(
    ("volumes", "tokens", "error", "sentence"),
    [
        ({"shape": (6, 6)}, {}, ValueError, "'volumes' must have three axes"),
        ({"shape": (2, 6, 0, 6)}, {}, ValueError, "none empty"),
        ({"dtype": FLOAT32}, {}, TypeError, "'volumes' must be int16, as prepared; got float32"),
        ({"strides": (432, 72, 12, 3)}, {}, ValueError, "'volumes' must lie at whole elements"),
        ({"pointer": 0x7F0000000001}, {}, ValueError, "'volumes' must lie at whole elements"),
        ({"pointer": 0}, {}, ValueError, "'volumes' is a null pointer"),
        ({}, {"pointer": 0}, ValueError, "'tokens' is a null pointer"),
        ({}, {"shape": (3, 27)}, ValueError, r"'tokens' must be \(2, 3, 27\) float32; got \(3, 2"),
        ({}, {"dtype": INT16}, ValueError, r"'tokens' must be .* got \(2, 3, 27\) int16"),
        (
            {},
            {"strides": (324, 4, 12)},
            ValueError,
            r"'tokens' must be contiguous device memory, strides \(324, 108, 4\); got \(324, 4,",
        ),
    ],
)
def test_device_arrays_that_do_not_fit_are_refused_by_name(
    volumes: dict[str, Any], tokens: dict[str, Any], error: type[Exception], sentence: str
):
    def changed(array: DeviceArray, **changes: Any) -> DeviceArray:
        fields = ("pointer", "shape", "dtype", "strides")
        return DeviceArray(**{name: getattr(array, name) for name in fields} | changes)

    with pytest.raises(error, match=sentence):
        check_device_arrays(
            changed(VOLUMES, **volumes), changed(TOKENS, **tokens), GEOMETRY, INT16, FLOAT32
        )


def test_arrays_that_fit_are_taken():
    check_device_arrays(VOLUMES, TOKENS, GEOMETRY, INT16, FLOAT32)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_to_source": np.eye(3)}, "'model_to_source' must be a finite 4x4"),
        ({"model_to_source": np.diag([1.0, 1, 0, 1])}, "'model_to_source' is singular"),
        ({"slope": np.inf}, "'slope' must be finite"),
    ],
)
def test_numbers_are_refused_by_name(change: dict[str, Any], sentence: str):
    right = {"model_to_source": np.eye(4), "slope": 1.0, "inter": 0.0, "fill": 0.0}
    with pytest.raises(ValueError, match=sentence):
        plan_launch(GEOMETRY, VOLUMES, mean=False, inv_std=False, **(right | change))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"volume": np.zeros((6, 6, 6), np.int32)}, TypeError, "'volume' must be int16.*got int32"),
        ({"dtype": np.int16}, TypeError, "'dtype' must be float32, float16, bfloat16; got int16"),
        ({"out": np.zeros((2, 27), np.float32)}, ValueError, r"'out' must be \(3, 27\) float32"),
        ({"mean": np.zeros((3, 26))}, ValueError, r"'mean' must have the shape \(3, 27\)"),
        ({"inv_std": np.full((3, 27), -1.0)}, ValueError, "'inv_std' must be at least 0"),
        ({"kernels": "nowhere"}, ValueError, "'kernels' must be a folder with kernels.json"),
        ({"volume": [0]}, TypeError, "'volume' must be a NumPy array; got list"),
    ],
)
def test_host_arguments_are_refused_before_a_device_is_looked_for(
    kernels: Path, change: dict[str, Any], error: type[Exception], sentence: str
):
    right = {
        "volume": np.zeros((6, 6, 6), np.int16),
        "geometry": GEOMETRY,
        "kernels": kernels,
        "model_to_source": np.eye(4),
    }
    with pytest.raises(error, match=sentence):
        resample_patchify(**(right | change), impl="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_a_machine_without_a_driver_is_told_so(kernels: Path):
    with pytest.raises(RuntimeError, match="needs an NVIDIA driver, and none could be loaded"):
        CudaResampler(kernels, GEOMETRY, volume_dtype=np.int16)


def test_an_installation_without_cuda_python_is_told_the_command(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    cuda_driver.driver.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'scanside\[gpu\]'"):
        CudaResampler(kernels, GEOMETRY, volume_dtype=np.int16)


@pytest.mark.parametrize(
    ("layout", "copied"),
    [
        (lambda a: a, False),
        (lambda a: a.T, False),
        (lambda a: a.transpose(1, 0, 2), False),
        (lambda a: a[:, ::2], True),
        (lambda a: a[::-1], True),
    ],
    ids=["C", "F", "permuted", "strided", "flipped"],
)
def test_only_volumes_with_gaps_or_flips_are_copied_before_an_upload(layout: Any, copied: bool):
    array = layout(np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5))
    made = compact(array)
    assert (made is not array) == copied
    assert (made == array).all()
    memory = np.frombuffer((ctypes.c_byte * made.nbytes).from_address(made.ctypes.data), np.int16)
    assert sorted(memory) == sorted(array.ravel())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_launched_kernel_equals_the_cpu(tmp_path: Path):
    rng = np.random.default_rng(0)
    volume = np.asfortranarray(rng.integers(-999, 999, (9, 8, 7)).astype(np.int16))
    arguments = {"model_to_source": np.diag([1.4, 1.2, 1.1, 1]), "slope": 0.1, "inter": 2.0}
    kernels = compile_kernels(tmp_path)
    found = resample_patchify(volume, GEOMETRY, impl="cuda", kernels=kernels, **arguments)
    assert found == pytest.approx(
        resample_patchify(volume, GEOMETRY, **arguments), rel=1e-5, abs=1e-3
    )
