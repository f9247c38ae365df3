"""Pictures and tokens looked at on the GPU: pixels to show, and whether every number is finite.

Two kernels over float32 or float16 arrays:

    pixels    target[i, c] = round(255 * clip(image[c, i] / 2 + 0.5, 0, 1)), as `to_pixels` does
    finite    notes that an element is infinite or NaN

Both note what is not finite in a word of device memory, so that the host reads one word instead of
every number.
"""

from __future__ import annotations

import math

from .buffer import Buffer
from .gpu import Gpu
from .ptx import ELEMENT, HEADER, LOAD, REGISTERS, SmallKernels, check_size, half_of

_NOTE = """
    testp.finite.f32 %p4, %f1;
    @%p4 bra       {label}FINITE;
    mov.u32        %r8, 1;
    st.global.u32  [%rd4], %r8;
{label}FINITE:
"""
_CHANNEL = """
{load}
{note}
    mul.rn.f32     %f1, %f1, 0f3F000000;
    add.rn.f32     %f1, %f1, 0f3F000000;
    max.f32        %f1, %f1, 0f00000000;
    min.f32        %f1, %f1, 0f3F800000;
    mul.rn.f32     %f1, %f1, 0f437F0000;
    cvt.rni.u32.f32 %r8, %f1;
    st.global.u8   [%rd6], %r8;
    add.u64        %rd6, %rd6, 1;
    add.u64        %rd7, %rd7, %rd5;
"""


def _channel(name: str) -> str:
    load = LOAD.format(label=name, at="%rd7", base="%rd3", to="%f1")
    return _CHANNEL.format(load=load, note=_NOTE.format(label=name))


_PIXELS = f"""
.visible .entry pixels(
    .param .u64 target, .param .u64 image, .param .u64 note,
    .param .u32 length, .param .u32 half)
{{{REGISTERS}
    ld.param.u64   %rd2, [target];
    ld.param.u64   %rd3, [image];
    ld.param.u64   %rd4, [note];
    ld.param.u32   %r5, [length];
    ld.param.u32   %r7, [half];
{ELEMENT}
    cvt.u64.u32    %rd5, %r5;
    mul.lo.u64     %rd6, %rd1, 3;
    add.u64        %rd6, %rd2, %rd6;
    mov.u64        %rd7, %rd1;
{_channel("RED")}{_channel("GREEN")}{_channel("BLUE")}
DONE:
    ret;
}}
"""
_FINITE = f"""
.visible .entry finite(
    .param .u64 source, .param .u64 note, .param .u32 length, .param .u32 half)
{{{REGISTERS}
    ld.param.u64   %rd3, [source];
    ld.param.u64   %rd4, [note];
    ld.param.u32   %r5, [length];
    ld.param.u32   %r7, [half];
{ELEMENT}
{LOAD.format(label="SOURCE", at="%rd1", base="%rd3", to="%f1")}
{_NOTE.format(label="SOURCE")}
DONE:
    ret;
}}
"""
PTX = f"{HEADER}{_PIXELS}{_FINITE}"


class Looks:
    """Both kernels on one GPU, launched on its stream.

    Raises
    ------
    DeviceError
        The driver does not take the kernels: a GPU older than Turing.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._kernels = SmallKernels(gpu, PTX, ("pixels", "finite"))

    def pixels(self, target: Buffer, image: Buffer, note: Buffer) -> None:
        """Enqueue the pixels of a picture.

        Parameters
        ----------
        target : (H, W, 3) uint8
        image : (1, 3, H, W) float32 or float16, in [-1, 1] up to overshoot
        note : (1,) uint32
            Becomes 1 where an element is not finite; else it stays as it is.
        """
        length = math.prod(image.shape[2:])
        check_size(target, 3 * length, "target")
        self._kernels.launch("pixels", (target, image, note), (length, half_of(image)), length)

    def finite(self, source: Buffer, note: Buffer) -> None:
        """Enqueue a look at every element of `source`, float32 or float16; `note` as above."""
        length = math.prod(source.shape)
        self._kernels.launch("finite", (source, note), (length, half_of(source)), length)

    def close(self) -> None:
        """Unload the kernels; may be called twice."""
        self._kernels.close()
