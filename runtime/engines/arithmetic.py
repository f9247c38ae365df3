"""The little arithmetic between graphs, on the GPU: so that no number comes back to the host.

Two kernels, each a loop over the elements of float32 or float16 arrays:

    combine   target[k, i] = sum over j of weights[j] * sources[j, i], for k < copies
    affine    target[i] = source[i] * scale[i] + shift[i]

Weights, scales, shifts and sums are float32.
"""

from __future__ import annotations

import math

from .buffer import Buffer
from .gpu import Gpu
from .ptx import ELEMENT, HEADER, LOAD, REGISTERS, STORE, SmallKernels, check_size, half_of

_COMBINE = f"""
.visible .entry combine(
    .param .u64 target, .param .u64 sources, .param .u64 weights,
    .param .u32 terms, .param .u32 length, .param .u32 copies, .param .u32 half)
{{{REGISTERS}
    ld.param.u64   %rd2, [target];
    ld.param.u64   %rd3, [sources];
    ld.param.u64   %rd4, [weights];
    ld.param.u32   %r9, [terms];
    ld.param.u32   %r5, [length];
    ld.param.u32   %r10, [copies];
    ld.param.u32   %r7, [half];
{ELEMENT}
    cvt.u64.u32    %rd5, %r5;
    mov.u64        %rd6, %rd1;
    mov.f32        %f1, 0f00000000;
    mov.u32        %r8, 0;
NEXTTERM:
    setp.ge.u32    %p4, %r8, %r9;
    @%p4 bra       SUMMED;
{LOAD.format(label="TERM", at="%rd6", base="%rd3", to="%f2")}
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
{STORE.format(at="%rd1", base="%rd2", value="%f1")}
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
{{{REGISTERS}
    ld.param.u64   %rd2, [target];
    ld.param.u64   %rd3, [source];
    ld.param.u64   %rd4, [scale];
    ld.param.u64   %rd5, [shift];
    ld.param.u32   %r5, [length];
    ld.param.u32   %r7, [half];
{ELEMENT}
{LOAD.format(label="SOURCE", at="%rd1", base="%rd3", to="%f1")}
    shl.b64        %rd6, %rd1, 2;
    add.u64        %rd4, %rd4, %rd6;
    add.u64        %rd5, %rd5, %rd6;
    ld.global.f32  %f2, [%rd4];
    ld.global.f32  %f3, [%rd5];
    fma.rn.f32     %f1, %f1, %f2, %f3;
{STORE.format(at="%rd1", base="%rd2", value="%f1")}
DONE:
    ret;
}}
"""
PTX = f"{HEADER}{_COMBINE}{_AFFINE}"


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
        self._kernels = SmallKernels(gpu, PTX, ("combine", "affine"))

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
        check_size(sources, terms * length, "sources")
        check_size(weights, terms, "weights")
        numbers = (terms, length, copies, half_of(sources, target))
        self._kernels.launch("combine", (target, sources, weights), numbers, length)

    def affine(self, target: Buffer, source: Buffer, scale: Buffer, shift: Buffer) -> None:
        """target[i] = source[i] * scale[i] + shift[i], over the elements of `source`.

        Parameters
        ----------
        target, source : float32 or float16
        scale, shift : float32
        """
        length = math.prod(source.shape)
        for name, buffer in (("target", target), ("scale", scale), ("shift", shift)):
            check_size(buffer, length, name)
        numbers = (length, half_of(source, target))
        self._kernels.launch("affine", (target, source, scale, shift), numbers, length)

    def close(self) -> None:
        """Unload the kernels; may be called twice."""
        self._kernels.close()
