"""Engines of TensorRT that cannot be loaded say why; those on one stream share their memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import pytest

from scanside.runtime.engines.buffer import Buffer
from scanside.runtime.engines.gpu import Gpu
from scanside.runtime.engines.native_engine import NativeEngine
from scanside.runtime.engines.rtx import fault_finder
from scanside.runtime.engines.scratch import Scratch
from scanside.runtime.engines.tensorrt_library import Library, library
from scanside.runtime.errors import DeviceError


class NoGpu:
    """Enough of a `Gpu` for what comes before the first use of the device."""

    number, stream = 0, 0

    def __init__(self) -> None:
        self.allocated: list[int] = []

    def current(self) -> Any:
        return nullcontext()

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        self.allocated.append(shape[0])
        return Buffer(pointer=4096 * len(self.allocated), shape=shape, dtype=np.dtype(dtype))


@pytest.fixture(scope="module")
def rtx() -> Library:
    return library("rtx")


def test_bytes_that_the_library_does_not_take_are_told_in_its_own_words(rtx: Library) -> None:
    with pytest.raises(DeviceError) as told:
        NativeEngine("unet", b"x" * 4096, rtx, cast(Gpu, NoGpu()))
    text = str(told.value)
    assert text.startswith(f"{rtx.name} cannot load the engine of the unet: ")
    assert text.endswith("; run scanside build BUNDLE --backend rtx")
    assert "it gave no reason" not in text
    assert "\n" not in text


def test_the_library_is_asked_before_anything_is_loaded(rtx: Library) -> None:
    with pytest.raises(DeviceError, match="refuses the engine of the unet: its bytes are damaged"):
        NativeEngine("unet", b"x" * 4096, rtx, cast(Gpu, NoGpu()), judge=fault_finder(rtx))


def borrower(kept: list[Buffer]) -> Callable[[Buffer], None]:
    return kept.append


def test_engines_share_one_buffer_that_grows_to_the_largest() -> None:
    gpu = NoGpu()
    scratch = Scratch(cast(Gpu, gpu), 1000)
    assert gpu.allocated == [1024]
    first, second = list[Buffer](), list[Buffer]()
    scratch.lend(800, borrower(first))
    assert first == [scratch.memory]
    scratch.lend(5000, borrower(second))
    assert gpu.allocated == [1024, 5120]
    assert second == [scratch.memory]
    assert first[-1] is scratch.memory  # told that it moved
    scratch.lend(5000, borrower(first))
    assert gpu.allocated == [1024, 5120]


def test_a_log_tells_errors_before_warnings_and_each_once(rtx: Library) -> None:
    log = rtx.log()
    severity = rtx.api.ILogger.Severity
    for kind, text in (
        (severity.WARNING, "slow"),
        (severity.ERROR, "[file.cpp::call::12] no memory."),
        (severity.ERROR, "[file.cpp::call::12] no memory."),
        (severity.VERBOSE, "chatter"),
    ):
        log.sink.log(kind, text)
    assert log.said() == "no memory"
    assert log.said() == "it gave no reason"
    log.sink.log(severity.WARNING, "slow")
    assert log.said() == "slow"
