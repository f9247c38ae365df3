"""The little arithmetic between graphs, on the GPU: so that no number comes back to the host.

Two kernels, each a loop over the elements of float32 or float16 arrays:

    combine   target[k, i] = sum over j of weights[j] * sources[j, i], for k < copies
    affine    target[i] = source[i] * scale[i] + shift[i]

Weights, scales, shifts and sums are float32. They are written in PTX, which the driver of any
NVIDIA GPU since Turing compiles by itself in milliseconds: no compiler and no library is needed.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from ...kernels.cuda_driver import call
from ..errors import DeviceError
from .buffer import Buffer
from .gpu import Gpu

_THREADS = 256
_HALF_IN, _HALF_OUT = 1, 2
_ELEMENT = """
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
_LOAD = """
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
_STORE = """
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
_REGISTERS = """
    .reg .pred %p<6>;
    .reg .b16  %h<2>;
    .reg .f32  %f<6>;
    .reg .b32  %r<12>;
    .reg .b64  %rd<12>;
"""
_COMBINE = f"""
.visible .entry combine(
    .param .u64 target, .param .u64 sources, .param .u64 weights,
    .param .u32 terms, .param .u32 length, .param .u32 copies, .param .u32 half)
{{{_REGISTERS}
    ld.param.u64   %rd2, [target];
    ld.param.u64   %rd3, [sources];
    ld.param.u64   %rd4, [weights];
    ld.param.u32   %r9, [terms];
    ld.param.u32   %r5, [length];
    ld.param.u32   %r10, [copies];
    ld.param.u32   %r7, [half];
{_ELEMENT}
    cvt.u64.u32    %rd5, %r5;
    mov.u64        %rd6, %rd1;
    mov.f32        %f1, 0f00000000;
    mov.u32        %r8, 0;
NEXTTERM:
    setp.ge.u32    %p4, %r8, %r9;
    @%p4 bra       SUMMED;
{_LOAD.format(label="TERM", at="%rd6", base="%rd3", to="%f2")}
    ld.global.f32  %f3, [%rd4];
    fma.rn.f32     %f1, %f3, %f2, %f1;
    add.u64        %rd4, %rd4, 4;
    add.u64        %rd6, %rd6, %rd5;
    add.u32        %r8, %r8, 1;
    bra            NEXTTERM;
SUMMED:
    mov.u32        %r8, 0;
NEXTCOPY:
    setp.ge.u32    %p4, %r8, %r10;
    @%p4 bra       DONE;
{_STORE.format(at="%rd1", base="%rd2", value="%f1")}
    add.u64        %rd1, %rd1, %rd5;
    add.u32        %r8, %r8, 1;
    bra            NEXTCOPY;
DONE:
    ret;
}}
"""
_AFFINE = f"""
.visible .entry affine(
    .param .u64 target, .param .u64 source, .param .u64 scale, .param .u64 shift,
    .param .u32 length, .param .u32 half)
{{{_REGISTERS}
    ld.param.u64   %rd2, [target];
    ld.param.u64   %rd3, [source];
    ld.param.u64   %rd4, [scale];
    ld.param.u64   %rd5, [shift];
    ld.param.u32   %r5, [length];
    ld.param.u32   %r7, [half];
{_ELEMENT}
{_LOAD.format(label="SOURCE", at="%rd1", base="%rd3", to="%f1")}
    shl.b64        %rd6, %rd1, 2;
    add.u64        %rd4, %rd4, %rd6;
    add.u64        %rd5, %rd5, %rd6;
    ld.global.f32  %f2, [%rd4];
    ld.global.f32  %f3, [%rd5];
    fma.rn.f32     %f1, %f1, %f2, %f3;
{_STORE.format(at="%rd1", base="%rd2", value="%f1")}
DONE:
    ret;
}}
"""
PTX = f".version 6.5\n.target sm_75\n.address_size 64\n{_COMBINE}{_AFFINE}"


class Arithmetic:
    """Both kernels on one GPU, launched on its stream.

    Parameters
    ----------
    gpu : Gpu

    Raises
    ------
    DeviceError
        The driver does not take the kernels: a GPU older than Turing.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._module: Any = None
        with gpu.current():
            self._module = call("cuModuleLoadData", PTX.encode() + b"\0")
            self._combine = call("cuModuleGetFunction", self._module, b"combine")
            self._affine = call("cuModuleGetFunction", self._module, b"affine")

    def combine(
        self, target: Buffer, sources: Buffer, weights: Buffer, *, terms: int, length: int
    ) -> None:
        """target[k, i] = sum over j of weights[j] * sources[j, i], the same for every k.

        Parameters
        ----------
        target : (copies, length) float32 or float16
            In any shape of that many elements.
        sources : (terms, length) or more, float32 or float16
        weights : (terms,) or more, float32
        terms, length : int
        """
        copies = math.prod(target.shape) // length
        _check(sources, terms * length, "sources")
        _check(weights, terms, "weights")
        numbers = (terms, length, copies, _half(sources, target))
        self._launch(self._combine, (target, sources, weights), numbers, length)

    def affine(self, target: Buffer, source: Buffer, scale: Buffer, shift: Buffer) -> None:
        """target[i] = source[i] * scale[i] + shift[i], over the elements of `source`.

        Parameters
        ----------
        target, source : float32 or float16
        scale, shift : float32
        """
        length = math.prod(source.shape)
        for name, buffer in (("target", target), ("scale", scale), ("shift", shift)):
            _check(buffer, length, name)
        numbers = (length, _half(source, target))
        self._launch(self._affine, (target, source, scale, shift), numbers, length)

    def _launch(
        self, function: Any, buffers: tuple[Buffer, ...], numbers: tuple[int, ...], length: int
    ) -> None:
        values: list[Any] = [ctypes.c_uint64(buffer.pointer) for buffer in buffers]
        values += [ctypes.c_uint32(number) for number in numbers]
        table = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        blocks = -(-length // _THREADS)
        # the driver copies the arguments before it returns
        at = ctypes.addressof(table)
        with self._gpu.current():
            grid = (blocks, 1, 1, _THREADS, 1, 1, 0)
            call("cuLaunchKernel", function, *grid, self._gpu.stream, at, 0)

    def close(self) -> None:
        """Unload the kernels; may be called twice."""
        if self._module is not None:
            with self._gpu.current():
                call("cuModuleUnload", self._module)
            self._module = None


def _check(buffer: Buffer, elements: int, name: str) -> None:
    if math.prod(buffer.shape) < elements:
        raise DeviceError(f"{name!r} has the shape {buffer.shape}, and {elements} are read")


def _half(source: Buffer, target: Buffer) -> int:
    half = np.dtype(np.float16)
    return _HALF_IN * (source.dtype == half) + _HALF_OUT * (target.dtype == half)
