"""From a volume in host memory to the encoder's answers, on the GPU but for the two ends.

The volume goes in from pinned memory; its tokens never visit the host, and of the answers only
those that are asked for do.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .device_tokens import DeviceTokens, flat
from .engines.buffer import Buffer
from .engines.engine import DeviceEngine
from .engines.pixels import Looks
from .errors import InputError
from .preprocess import Preprocessor
from .volume import Volume

Floats = NDArray[np.float32]

_ROOM = 1 << 22
"""Bytes of a volume that there is room for at first."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class DeviceVolume:
    """A volume as its tokens on the GPU, in memory that is its own for as long as it is kept."""

    tokens: Buffer
    """(1, N, C)"""


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
        self._read = encoder.buffers["tokens"]
        self._free: list[Buffer] = []
        """Memory of volumes that nobody keeps any more."""
        self._made = DeviceTokens(preprocessor, self.gpu)
        self._looks = Looks(self.gpu)
        self._note = self.gpu.allocate((1,), np.uint32)
        self._noted = self.gpu.pinned((1,), np.uint32)
        self._answers = {
            name: self.gpu.pinned(spec.shape, spec.dtype) for name, spec in encoder.outputs.items()
        }
        self._make_room(_ROOM)
        self._closed = False

    def _make_room(self, size: int) -> None:
        self._room = self.gpu.allocate((size,), np.uint8)
        self._inbox = self.gpu.pinned((size,), np.uint8)

    def warm(self) -> None:
        """Load what the first volume of any type would have to wait for."""
        self._made.warm(self._read.dtype)

    def place(self, volume: Volume) -> DeviceVolume:
        """Make the tokens of a volume.

        Raises
        ------
        InputError
            As `Preprocessor.tokens`, or the decoder is closed.
        """
        self._check_open()
        tokens = (
            self._free.pop()
            if self._free
            else self.gpu.allocate(self._read.shape, self._read.dtype)
        )
        placed = DeviceVolume(tokens)
        weakref.finalize(placed, self._free.append, tokens).atexit = False
        self._enqueue_tokens(volume, tokens)
        self.gpu.wait()
        self.check(volume)
        return placed

    def enqueue(self, volume: Volume) -> None:
        """Enqueue a volume's way in, its tokens and the encoder; nothing waits.

        Raises
        ------
        InputError
            As `place`, but for what `check` tells once the GPU was waited for.
        """
        self._check_open()
        self._enqueue_tokens(volume, self._read)
        self._encoder.launch()

    def check(self, volume: Volume) -> None:
        """InputError where the tokens that were enqueued last, this volume's, are not finite."""
        noted, self._noted[0] = bool(self._noted[0]), 0
        if noted:
            raise self._preprocessor.too_large(volume)

    def _enqueue_tokens(self, volume: Volume, tokens: Buffer) -> None:
        data, raw = flat(volume)
        if raw.nbytes > self._room.nbytes:  # what was there before is freed with the Gpu
            self._make_room(1 << (raw.nbytes - 1).bit_length())  # so all of it is at most twice
        launch = self._made.launch_of(volume, data, self._room, tokens)
        self.gpu.send(raw, self._inbox, self._room)
        with self.gpu.current():  # whose errors are DeviceError
            launch(self.gpu.stream)
        self.gpu.clear(self._note)
        self._looks.finite(tokens, self._note)
        self.gpu.download(self._note, self._noted)

    def encode(self, tokens: DeviceVolume | Floats, wanted: Iterable[str]) -> dict[str, Floats]:
        """Answers of the encoder by name, those of `wanted` that it has.

        Parameters
        ----------
        tokens : DeviceVolume or (N, C) float32
            Normalised; from `place`, or of the host.
        wanted : iterable of str
        """
        self._check_open()
        gpu, wanted = self.gpu, set(wanted)
        if isinstance(tokens, DeviceVolume):
            gpu.copy(tokens.tokens, self._read)
        else:
            gpu.upload(tokens, self._read)
        self._encoder.launch()
        asked = [name for name in self._answers if name in wanted]
        for name in asked:
            gpu.download(self._encoder.buffers[name], self._answers[name])
        gpu.wait()
        return {name: self._answers[name].astype(np.float32) for name in asked}

    def largest(self) -> float:
        """The largest magnitude of the tokens that were encoded last, for messages."""
        tokens = np.empty(self._read.shape, self._read.dtype)
        self.gpu.download(self._read, tokens)
        self.gpu.wait()
        return float(np.abs(tokens).max())

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the decoder is closed; open it again")

    def close(self) -> None:
        """Unload the kernels; memory and engine belong to others. May be called twice."""
        self._closed = True
        self._made.close()
        self._looks.close()
