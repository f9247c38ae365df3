"""A decoder of latents on the GPU, with the pixels of its picture as all that comes to the host.

A picture of 512 x 512 is 3 MiB of float32, which the host would look through for what is not finite
and round. Here both happen where the picture lies: 0.75 MiB and one word come out.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .engines.engine import DeviceEngine
from .engines.pixels import Looks
from .errors import ScansideError

NOT_FINITE = (
    "the decoded picture is not finite; check the volume's units, and the bundle with scanside "
    "verify"
)
_WORD = 4


class DevicePicture:
    """A VAE's or tiny decoder's engine, from a latent to pixels.

    Parameters
    ----------
    decoder : DeviceEngine
        latent (1, 4, h, w) -> image (1, 3, H, W) in [-1, 1].
    """

    def __init__(self, decoder: DeviceEngine) -> None:
        self.decoder, self.gpu = decoder, decoder.gpu
        *_, height, width = decoder.outputs["image"].shape
        self._shape = height, width, 3
        self._size = math.prod(self._shape)
        at = -(-self._size // _WORD) * _WORD
        # pixels and the word side by side, so that they are one copy
        self._out = self.gpu.allocate((at + _WORD,), np.uint8)
        self._pixels = self._out.part(0, self._shape)
        self._note = self._out.part(at, (1,), np.uint32)
        self._host = self.gpu.pinned(self._out.shape, np.uint8)
        self._looks = Looks(self.gpu)

    def enqueue(self) -> None:
        """Enqueue the picture of what lies in the decoder's latent, and the copy of its pixels."""
        self.decoder.launch()
        self.gpu.clear(self._note)
        self._looks.pixels(self._pixels, self.decoder.buffers["image"], self._note)
        self.gpu.download(self._out, self._host)

    def read(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8, a copy of what the last `enqueue` gave, once the GPU was waited for.

        Raises
        ------
        ScansideError
            The picture is not finite.
        """
        if self._host[-_WORD:].any():
            raise ScansideError(NOT_FINITE)
        return self._host[: self._size].reshape(self._shape).copy()

    def of(self, latent: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The pixels of a latent (1, 4, h, w) on the host; ScansideError as `read`."""
        self.gpu.upload(latent, self.decoder.buffers["latent"])
        self.enqueue()
        self.gpu.wait()
        return self.read()

    def close(self) -> None:
        """Unload the kernels; the memory belongs to the Gpu, the engine to whoever opened it."""
        self._looks.close()
