"""What the driver says, before any library is touched: each fault is one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scanside.runtime import Decoder
from scanside.runtime.errors import DeviceError

SOURCE = Path(__file__).with_name("stand_in_driver.c")
PROBED = """
from scanside.runtime.engines.driver import need_gpu
try:
    print(need_gpu("cuda", {number}))
except Exception as exc:
    print(type(exc).__name__, exc)
"""


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """What a process prints that asks the stand-in for a GPU; a driver loads once a process."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the native code needs a C compiler, and so does this test"
    folder = tmp_path_factory.mktemp("driver")
    target = folder / "libcuda.so.1"
    command = [compiler, "-std=gnu11", "-shared", "-fPIC", "-o", target, SOURCE, "-lm"]
    subprocess.run(command, check=True)

    def probed(number: int = 0, **settings: str) -> str:
        wanted = {"LD_LIBRARY_PATH": str(folder), "STAND_IN_CAPABILITY": "90"} | settings
        done = subprocess.run(
            [sys.executable, "-P", "-W", "error", "-c", PROBED.format(number=number)],
            env=os.environ | wanted,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    return probed


def test_a_gpu_is_described(probed: Callable[..., str]) -> None:
    assert probed() == (
        "Card(number=0, name='stand-in', capability=(9, 0), memory_bytes=8589934592, "
        "multiprocessors=132)"
    )


def test_an_old_driver_is_refused_with_the_cure(probed: Callable[..., str]) -> None:
    assert probed(STAND_IN_CUDA="12040") == (
        "DeviceError device 'cuda' needs a driver for CUDA 13.0, and this one is for CUDA 12.4; "
        "install NVIDIA driver 580 or newer, or use device='cpu'"
    )


def test_a_gpu_that_is_not_there_is_refused(probed: Callable[..., str]) -> None:
    assert probed(3) == ("DeviceError GPU 3 was asked for, but the driver finds 1, counted from 0")


def test_a_driver_that_does_not_start_says_so(probed: Callable[..., str]) -> None:
    said = probed(STAND_IN_FAILS="cuInit")
    assert said.startswith("DeviceError device 'cuda' was asked for, but the NVIDIA driver does ")
    assert "(cuInit: out of memory)" in said


@pytest.mark.skipif(
    Path("/dev/nvidiactl").exists(), reason="this machine has a driver, so nothing is refused"
)
@pytest.mark.parametrize(
    "device", ["cuda", "cuda,language=cpu", "cpu,unet=cuda", "cpu,preprocess=cuda", "language=cuda"]
)
def test_without_a_driver_open_refuses_every_gpu_in_one_sentence(device: str) -> None:
    with pytest.raises(DeviceError) as caught:
        Decoder.open("reference", device=device)
    assert str(caught.value) == (
        "device 'cuda' was asked for, but no NVIDIA driver was found (libcuda.so.1 cannot be "
        "loaded); install the driver of your card, or use device='cpu'"
    )
