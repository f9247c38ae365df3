"""From a volume in host memory to the encoder's answers, on the GPU but for the two ends.

The volume goes in from pinned memory; its tokens never visit the host, and of the answers only
those that are asked for do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .device_tokens import DeviceTokens, flat
from .engines.engine import DeviceEngine
from .engines.pixels import Looks
from .preprocess import Preprocessor
from .volume import Volume

Floats = NDArray[np.float32]

_ROOM = 1 << 22
"""Bytes of a volume that there is room for at first; a larger one makes more."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A volume whose tokens were made on the GPU."""

    volume: Volume
    """Kept, for its tokens are made again where those of another took their place."""


class DeviceEncoding:
    """Resample kernel and encoder, joined on one GPU and one stream.

    Parameters
    ----------
    preprocessor : Preprocessor
        With compiled kernels.
    encoder : DeviceEngine
        tokens (1, N, C) -> its answers.
    """

    def __init__(self, preprocessor: Preprocessor, encoder: DeviceEngine) -> None:
        self._preprocessor, self._encoder, self.gpu = preprocessor, encoder, encoder.gpu
        read = encoder.buffers["tokens"]
        # not where the encoder reads them: others may run it between `place` and `encode`
        self._tokens = self.gpu.allocate(read.shape, read.dtype)
        self._made = DeviceTokens(preprocessor, self._tokens, self.gpu)
        self._looks = Looks(self.gpu)
        self._note = self.gpu.allocate((1,), np.uint32)
        self._noted = self.gpu.pinned((1,), np.uint32)
        self._answers = {
            name: self.gpu.pinned(spec.shape, spec.dtype) for name, spec in encoder.outputs.items()
        }
        self._room = self.gpu.allocate((_ROOM,), np.uint8)
        self._inbox = self.gpu.pinned((_ROOM,), np.uint8)
        self._current: Placed | None = None

    def place(self, volume: Volume) -> Placed:
        """Make the tokens of a volume.

        Raises
        ------
        InputError
            As `Preprocessor.tokens`.
        """
        placed = Placed(volume)
        self._place(placed)
        return placed

    def _place(self, placed: Placed) -> None:
        self._enqueue_tokens(placed.volume)
        self.gpu.wait()
        self.check(placed.volume)
        self._current = placed

    def enqueue(self, volume: Volume) -> None:
        """Enqueue a volume's way in, its tokens and the encoder; nothing waits.

        Raises
        ------
        InputError
            As `Preprocessor.tokens`, but for what `check` tells once the GPU was waited for.
        """
        self._enqueue_tokens(volume)
        self.gpu.copy(self._tokens, self._encoder.buffers["tokens"])
        self._encoder.launch()

    def check(self, volume: Volume) -> None:
        """InputError where the tokens that were enqueued last, this volume's, are not finite."""
        if self._noted[0]:
            raise self._preprocessor.too_large(volume)

    def _enqueue_tokens(self, volume: Volume) -> None:
        self._current = None
        data, raw = flat(volume)
        if raw.nbytes > self._room.nbytes:  # what was there before is freed with the Gpu
            self._room = self.gpu.allocate((raw.nbytes,), np.uint8)
            self._inbox = self.gpu.pinned((raw.nbytes,), np.uint8)
        launch = self._made.launch_of(volume, data, self._room)
        self.gpu.send(raw, self._inbox, self._room)
        with self.gpu.current():  # whose errors are DeviceError
            launch(self.gpu.stream)
        self.gpu.clear(self._note)
        self._looks.finite(self._tokens, self._note)
        self.gpu.download(self._note, self._noted)

    def encode(self, placed: Placed, wanted: Iterable[str]) -> dict[str, Floats]:
        """Answers of the encoder by name, those of `wanted` that it has."""
        if placed is not self._current:
            self._place(placed)
        encoder, gpu = self._encoder, self.gpu
        gpu.copy(self._tokens, encoder.buffers["tokens"])
        encoder.launch()
        asked = [name for name in wanted if name in self._answers]
        for name in asked:
            gpu.download(encoder.buffers[name], self._answers[name])
        gpu.wait()
        return {name: self._answers[name].astype(np.float32) for name in asked}

    def largest(self) -> float:
        """The largest of the tokens' magnitudes, for messages."""
        tokens = np.empty(self._tokens.shape, self._tokens.dtype)
        self.gpu.download(self._tokens, tokens)
        self.gpu.wait()
        return float(np.abs(tokens).max())

    def close(self) -> None:
        """Unload the kernels; memory and engine belong to others. May be called twice."""
        self._made.close()
        self._looks.close()
