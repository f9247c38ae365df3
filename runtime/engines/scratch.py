"""Memory for intermediate tensors, which all engines on one stream share.

Engines on one stream run one after another, so they need as much as the largest of them, not the
sum. Engines that run beside each other, on streams of their own, must not share.
"""

from __future__ import annotations

from collections.abc import Callable

from .buffer import Buffer
from .gpu import Gpu

_ALIGNED = 256
"""Bytes on which TensorRT wants memory to begin; the driver's allocations begin on 512."""


class Scratch:
    """One buffer that grows while engines are opened, and then stays.

    Parameters
    ----------
    gpu : Gpu
        Whose stream the engines run on; it frees the memory.
    size_bytes : int
        What is known to be needed: growing later leaves the smaller buffer allocated.
    """

    def __init__(self, gpu: Gpu, size_bytes: int) -> None:
        self._gpu = gpu
        self._borrowers: list[Callable[[Buffer], None]] = []
        self.memory: Buffer = gpu.allocate((_rounded(size_bytes),), "uint8")

    def lend(self, size_bytes: int, borrower: Callable[[Buffer], None]) -> None:
        """Hand out the buffer, for as long as it is; `borrower` is told again when it moves.

        Nothing that was lent may have been captured by then.
        """
        self._borrowers.append(borrower)
        if size_bytes <= self.memory.nbytes:
            borrower(self.memory)
            return
        self.memory = self._gpu.allocate((_rounded(size_bytes),), "uint8")
        for each in self._borrowers:
            each(self.memory)


def _rounded(size_bytes: int) -> int:
    return max(-(-size_bytes // _ALIGNED) * _ALIGNED, _ALIGNED)
