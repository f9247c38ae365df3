"""What small kernels in PTX share: an element a thread, numbers in float32 or float16, a launch.

PTX is compiled by the driver of any NVIDIA GPU since Turing in milliseconds: no compiler and no
library is needed.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...kernels.cuda_driver import call
from ..errors import DeviceError
from .buffer import Buffer
from .gpu import Gpu

_THREADS = 256
HALF_IN, HALF_OUT = 1, 2
ELEMENT = """
    mov.u32        %r1, %ctaid.x;
    mov.u32        %r2, %ntid.x;
    mov.u32        %r3, %tid.x;
    mad.lo.u32     %r4, %r1, %r2, %r3;
    setp.ge.u32    %p1, %r4, %r5;
    @%p1 bra       DONE;
    cvt.u64.u32    %rd1, %r4;
    and.b32        %r6, %r7, 1;
    setp.ne.u32    %p2, %r6, 0;
    and.b32        %r6, %r7, 2;
    setp.ne.u32    %p3, %r6, 0;
"""
"""Element %rd1 of %r5; %p2 and %p3 say whether source and target are float16, as %r7 has it."""
LOAD = """
    @%p2 bra       {label}HALF;
    shl.b64        %rd8, {at}, 2;
    add.u64        %rd8, {base}, %rd8;
    ld.global.f32  {to}, [%rd8];
    bra            {label}LOADED;
{label}HALF:
    shl.b64        %rd8, {at}, 1;
    add.u64        %rd8, {base}, %rd8;
    ld.global.b16  %h1, [%rd8];
    cvt.f32.f16    {to}, %h1;
{label}LOADED:
"""
STORE = """
    @%p3 bra       STOREHALF;
    shl.b64        %rd8, {at}, 2;
    add.u64        %rd8, {base}, %rd8;
    st.global.f32  [%rd8], {value};
    bra            STORED;
STOREHALF:
    shl.b64        %rd8, {at}, 1;
    add.u64        %rd8, {base}, %rd8;
    cvt.rn.f16.f32 %h1, {value};
    st.global.b16  [%rd8], %h1;
STORED:
"""
REGISTERS = """
    .reg .pred %p<6>;
    .reg .b16  %h<2>;
    .reg .f32  %f<6>;
    .reg .b32  %r<12>;
    .reg .b64  %rd<12>;
"""
HEADER = ".version 6.5\n.target sm_75\n.address_size 64\n"


class SmallKernels:
    """Kernels of one text on one GPU, launched on its stream.

    Parameters
    ----------
    gpu : Gpu
    text : str
        PTX: HEADER, then entries that take pointers first and 32-bit numbers after them.
    names : sequence of str
        Of the entries.

    Raises
    ------
    DeviceError
        The driver does not take the kernels: a GPU older than Turing.
    """

    def __init__(self, gpu: Gpu, text: str, names: Sequence[str]) -> None:
        self._gpu = gpu
        self._module: Any = None
        with gpu.current():
            self._module = call("cuModuleLoadData", text.encode() + b"\0")
            self._functions = {
                name: call("cuModuleGetFunction", self._module, name.encode()) for name in names
            }

    def launch(
        self, name: str, buffers: tuple[Buffer, ...], numbers: tuple[int, ...], length: int
    ) -> None:
        """Enqueue an entry with a thread for each of `length` elements."""
        values: list[Any] = [ctypes.c_uint64(buffer.pointer) for buffer in buffers]
        values += [ctypes.c_uint32(number) for number in numbers]
        table = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        blocks = -(-length // _THREADS)
        # the driver copies the arguments before it returns
        at = ctypes.addressof(table)
        with self._gpu.current():
            grid = (blocks, 1, 1, _THREADS, 1, 1, 0)
            call("cuLaunchKernel", self._functions[name], *grid, self._gpu.stream, at, 0)

    def close(self) -> None:
        """Unload the kernels; may be called twice."""
        if self._module is not None:
            with self._gpu.current():
                call("cuModuleUnload", self._module)
            self._module = None


def check_size(buffer: Buffer, elements: int, name: str) -> None:
    """DeviceError where a kernel would reach past the end of a buffer."""
    if math.prod(buffer.shape) < elements:
        raise DeviceError(f"{name!r} has the shape {buffer.shape}, and {elements} are read")


def half_of(source: Buffer, target: Buffer | None = None) -> int:
    """Which of source and target are float16, as ELEMENT takes it."""
    half = np.dtype(np.float16)
    found = HALF_IN * (source.dtype == half)
    return found + HALF_OUT * (target is not None and target.dtype == half)
