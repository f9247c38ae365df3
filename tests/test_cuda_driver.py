"""The launcher on a stand-in for the driver: the calls it makes, and what it does when one fails.

cuda-python is the real one; libcuda.so.1 is built from `stand_in_driver.c`, which makes tokens from
the arguments of a launch alone. Each test is a process of its own, since a driver loads once.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import scanside.runtime

KERNELS = Path(scanside.runtime.__path__[0]) / "reference" / "bundle" / "kernels"
SOURCE = Path(__file__).with_name("stand_in_driver.c")
PREPARED = f"""
import json
import os
import numpy as np
from scanside.kernels import Geometry, resample_patchify
from scanside.kernels.launcher import CudaResampler, DeviceArray

geometry = Geometry(grid=(6, 7, 5), cube=3, active=np.array([5, 0, 11, 7]), pad="both")
rng = np.random.default_rng(0)
volume = np.asfortranarray(rng.integers(-999, 999, (7, 5, 6)).astype(np.int16))
matrix = np.eye(4)
matrix[:3] = [[0.9, 0.2, -0.1, 0.3], [-0.1, 0.7, 0.3, -0.4], [0.2, -0.2, 1.1, 0.5]]
mean = rng.normal(size=geometry.shape)
inv_std = np.maximum(rng.normal(size=geometry.shape), 0)

def tokens(volume, impl="cuda", **more):
    return resample_patchify(
        volume, geometry, model_to_source=matrix, slope=0.5, inter=-3, fill=7, impl=impl,
        kernels={str(KERNELS)!r}, **more,
    )
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the stand-in lies."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the native code needs a C compiler, and so does this test"
    folder = tmp_path_factory.mktemp("driver")
    target = folder / "libcuda.so.1"
    command = [compiler, "-std=gnu11", "-shared", "-fPIC", "-o", target, SOURCE, "-lm"]
    subprocess.run(command, check=True)
    return folder


def run(driver: Path, code: str, capability: int = 90) -> tuple[str, list[str]]:
    """What the code prints, and the calls that the stand-in got."""
    log = driver / "calls"
    log.unlink(missing_ok=True)
    settings = {
        "LD_LIBRARY_PATH": str(driver),
        "STAND_IN_CAPABILITY": str(capability),
        "STAND_IN_LOG": str(log),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", PREPARED + code],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, log.read_text().splitlines() if log.exists() else []


def unbalanced(calls: list[str]) -> dict[str, int]:
    """What was opened and not closed, by the call that opens it."""
    count = Counter(calls)
    pairs = (
        ("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"),
        ("cuCtxPushCurrent", "cuCtxPopCurrent"),
        ("cuMemAlloc", "cuMemFree"),
        ("cuModuleLoadData", "cuModuleUnload"),
    )
    left = {one: count[one] - count[other] for one, other in pairs}
    return {name: number for name, number in left.items() if number}


def test_a_launch_hands_over_what_the_contract_says(driver: Path):
    """From any memory layout, for one volume and a batch: the stand-in knows nothing else."""
    out, calls = run(
        driver,
        """
wide = np.zeros((14, 5, 12), np.int16, order="F")
wide[::2, :, ::2] = volume
turned = np.asfortranarray(volume[::-1, :, ::-1])[::-1, :, ::-1]
batch = np.stack([volume, -volume, volume[::-1]])
for given in (volume, np.ascontiguousarray(volume), wide[::2, :, ::2], turned, batch, batch[::-1]):
    for more in ({}, {"mean": mean}, {"inv_std": inv_std}, {"mean": mean, "inv_std": inv_std}):
        found, expected = tokens(given, **more), tokens(given, impl="reference", **more)
        assert found.shape == expected.shape
        assert np.abs(expected).max() > 10
        print(np.abs(found - expected).max() / np.abs(expected).max())
""",
    )
    differences = [float(line) for line in out.split()]
    assert len(differences) == 24
    assert max(differences) < 1e-6
    assert unbalanced(calls) == {}
    assert calls.count("cuLaunchKernel 512 threads, 4096 bytes shared, stream 0") == 24


def test_a_launch_is_on_the_stream_that_is_given_and_refused_once_closed(driver: Path):
    out, calls = run(
        driver,
        f"""
with CudaResampler({str(KERNELS)!r}, geometry, volume_dtype="int16") as gpu:
    memory, made = gpu._device.upload(volume), gpu._device.allocate(4 * 4 * 27)
    volumes = DeviceArray(
        pointer=memory, shape=volume.shape, dtype=volume.dtype, strides=volume.strides
    )
    tokens = DeviceArray(pointer=made, shape=(4, 27), dtype=np.dtype("float32"))
    launch = gpu.prepare(volumes, tokens, model_to_source=matrix)
    launch(4242)
    launch(4243)
gpu.close()
try:
    launch()
except RuntimeError as exc:
    print(exc)
""",
    )
    assert [call.split()[-1] for call in calls if "stream" in call] == ["4242", "4243"]
    assert calls.count("cuModuleUnload") == 1
    assert out == "this launch belongs to a CudaResampler that was closed; make another\n"


CALLS = (
    "cuInit",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuMemAlloc",
    "cuMemcpyHtoD",
    "cuLaunchKernel",
    "cuCtxSynchronize",
    "cuMemcpyDtoH",
)


def test_every_call_that_fails_is_named_and_nothing_is_left_open(driver: Path):
    out, calls = run(
        driver,
        f"""
for name in {CALLS}:
    os.environ["STAND_IN_FAILS"] = name
    try:
        tokens(volume, mean=mean)
    except RuntimeError as exc:
        print(exc)
os.environ["STAND_IN_FAILS"] = ""
assert np.isfinite(tokens(volume, mean=mean)).all()
""",
    )
    reason = "failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)"
    assert out.splitlines() == [f"{name} {reason}" for name in CALLS]
    # what failed was not opened
    failed = {"cuDevicePrimaryCtxRetain": 1, "cuModuleLoadData": 1, "cuMemAlloc": 1}
    assert unbalanced(calls) == failed


@pytest.mark.parametrize(
    ("capability", "answer"),
    [
        (86, "sm_86"),
        (103, "sm_100"),
        (110, "ptx"),
        (75, "none of which runs on compute capability 7.5; use impl='cpu'"),
    ],
)
def test_a_device_gets_its_own_code_or_is_refused(driver: Path, capability: int, answer: str):
    out, calls = run(
        driver,
        f"""
try:
    with CudaResampler({str(KERNELS)!r}, geometry, volume_dtype="int16") as gpu:
        print(gpu.target)
except ValueError as exc:
    print(exc)
""",
        capability,
    )
    assert out.strip().endswith(answer)
    assert len(out.splitlines()) == 1
    assert unbalanced(calls) == {}
    assert ("cuModuleLoadData" in calls) == (capability != 75)


def test_a_device_that_is_not_there_is_refused_by_name(driver: Path):
    out, calls = run(
        driver,
        f"""
try:
    CudaResampler({str(KERNELS)!r}, geometry, volume_dtype="int16", device=1)
except ValueError as exc:
    print(exc)
""",
    )
    assert out == "'device' must be 0 to 0; got 1\n"
    assert unbalanced(calls) == {}


def test_verify_runs_the_golden_volume_through_the_kernel_that_is_asked_for(driver: Path):
    out, calls = run(
        driver,
        """
from scanside.runtime.cli import main
main(["verify", "reference", "--device", "cpu,preprocess=cuda", "--json"])
""",
    )
    checks = {check["what"]: check for check in json.loads(out)["checks"]}
    assert checks["tokens"]["passed"], checks["tokens"]
    # one for each encoder of the bundle, whose cubes differ
    assert calls.count("cuLaunchKernel") == 3
    assert unbalanced(calls) == {}


def test_a_decoder_says_where_its_tokens_are_made(driver: Path):
    out, _ = run(
        driver,
        """
from scanside.runtime.bundle import Bundle
from scanside.runtime.devices import stage_devices
from scanside.runtime.errors import DeviceError
from scanside.runtime.kernels import open_kernels
from scanside.runtime.preprocess import Preprocessor

bundle = Bundle.open("reference")
spec = bundle.manifest.encoder

def preprocessor():
    return Preprocessor(
        spec, bundle.arrays(spec.arrays), 1.0, device="cuda", kernels=open_kernels(bundle)
    )

print(preprocessor().provider)
os.environ["STAND_IN_CAPABILITY"] = "75"
try:
    preprocessor()
except DeviceError as exc:
    print(exc)
""",
    )
    provider, refusal = out.splitlines()
    assert provider == "CUDA kernel"
    assert refusal.endswith("none of which runs on compute capability 7.5; use impl='cpu'")
