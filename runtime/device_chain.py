"""From a volume in host memory to a picture in host memory, with nothing on the host in between.

One copy in (volume and noise, from pinned memory), the resample kernel, the encoder, all denoising
steps, the VAE, and the picture out: everything is enqueued on one stream and waited for once.

    with Decoder.open("reference", device="cuda,language=cpu,concept_encoder=cpu") as decoder:
        chain = DeviceChain(decoder.stages)
        made = chain.picture(load_volume("trial.nii.gz"), steps=4, seed=0)
        made.image, chain.encoded()["clip"]
        chain.close()
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.device_arguments import DeviceArray
from ..kernels.host_to_host import compact
from ..kernels.launcher import CudaResampler
from .engines.engine import DeviceEngine
from .errors import DeviceError
from .reconstruction import Whole
from .stages import Stages
from .volume import Volume

Floats = NDArray[np.float32]

_PREPARED = 16
"""Launches that are kept: volumes of a run differ only where motion is in their affine."""


class DeviceChain:
    """The stages of an opened decoder, joined on the GPU. Use it in turn with the decoder.

    Parameters
    ----------
    stages : Stages
        With preprocess, encoder, U-Net and VAE on one GPU.

    Raises
    ------
    DeviceError
        One of them runs elsewhere, or the bundle makes no pictures.
    """

    def __init__(self, stages: Stages) -> None:
        encoder, pictures = stages.encoder, stages.pictures
        if pictures is None or not pictures.reconstruction.resident:
            raise DeviceError(
                "the chain needs U-Net and VAE on a GPU; open the decoder with device='cuda'"
            )
        if not isinstance(encoder, DeviceEngine) or stages.preprocessor.kernels is None:
            raise DeviceError(
                "the chain needs preprocess and encoder on the GPU; open the decoder with "
                "device='cuda'"
            )
        self._encoder = encoder
        self._preprocessor = stages.preprocessor
        self._picture = pictures.reconstruction
        self._empty = pictures.prompt.empty
        self.gpu = encoder.gpu
        self._resamplers: dict[str, CudaResampler] = {}
        self._launches: dict[tuple[Any, ...], Callable[[Any], None]] = {}
        self._opened = ExitStack()

    def picture(
        self, volume: Volume, *, steps: int, seed: int = 0, states: Floats | None = None
    ) -> Whole:
        """The picture of a volume.

        Parameters
        ----------
        volume : Volume
            From `load_volume`. Volumes of one shape, type and place share what is prepared.
        steps, seed : int
        states : (1, L, W) float32, optional
            Of a prompt, from `PromptEncoder.encode`; of no text by default.

        Raises
        ------
        InputError
            As `Preprocessor.tokens` and `Reconstruction.steps`.
        ScansideError
            The latent or the picture is not finite.
        """
        launch = self._placed(volume)

        def encode() -> None:
            launch(self.gpu.stream)
            self._encoder.launch()

        buffers = self._encoder.buffers
        return self._picture.from_device(
            encode,
            buffers["clip"],
            buffers["latent"],
            self._empty if states is None else states,
            steps=steps,
            seed=seed,
        )

    def encoded(self) -> dict[str, Floats]:
        """The encoder's answers for the last volume, copied out: clip, latent, prefix, others."""
        outputs, buffers = self._encoder.outputs, self._encoder.buffers
        found = {name: np.empty(spec.shape, spec.dtype) for name, spec in outputs.items()}
        for name, values in found.items():
            self.gpu.download(buffers[name], values)
        self.gpu.wait()
        return {name: values.astype(np.float32) for name, values in found.items()}

    def _placed(self, volume: Volume) -> Callable[[Any], None]:
        """Put the volume into the inbox; the launch that reads it on the device."""
        data, resident = compact(volume.data), self._picture.on_device
        if data.nbytes > resident.inbox.nbytes:
            resident.reserve(data.nbytes)
            self._launches.clear()
        order = np.argsort([-stride for stride in data.strides], kind="stable")
        flat = data.transpose(*order).reshape(-1)  # as it lies in memory, no copy
        resident.inbox[: data.nbytes] = flat.view(np.uint8)
        place = volume.affine.tobytes(), volume.slope, volume.inter
        key = (data.dtype.name, data.shape, data.strides, *place)
        if key not in self._launches:
            if len(self._launches) >= _PREPARED:
                self._launches.clear()
            self._launches[key] = self._prepared(volume, data)
        return self._launches[key]

    def _prepared(self, volume: Volume, data: NDArray[Any]) -> Callable[[Any], None]:
        preprocessor, room = self._preprocessor, self._picture.on_device.room
        tokens = self._encoder.buffers["tokens"]
        volumes = DeviceArray(
            pointer=room.pointer, shape=data.shape, dtype=data.dtype, strides=data.strides
        )
        return self._resampler(data.dtype, tokens.dtype).prepare(
            volumes,
            DeviceArray(pointer=tokens.pointer, shape=tokens.shape[1:], dtype=tokens.dtype),
            model_to_source=preprocessor.model_to_source(volume),
            slope=volume.slope * preprocessor.scale,
            inter=volume.inter * preprocessor.scale,
        )

    def _resampler(self, stored: np.dtype[Any], dtype: np.dtype[Any]) -> CudaResampler:
        if stored.name not in self._resamplers:
            kernels = self._preprocessor.kernels
            assert kernels is not None, "looked at when the chain was made"
            try:
                made = CudaResampler(
                    kernels,
                    self._preprocessor.geometry,
                    volume_dtype=stored,
                    dtype=dtype,
                    device=self.gpu.number,
                    **self._preprocessor.statistics,
                )
            except (RuntimeError, ValueError) as exc:
                raise DeviceError(str(exc)) from exc
            self._resamplers[stored.name] = self._opened.enter_context(made)
        return self._resamplers[stored.name]

    def close(self) -> None:
        """Unload the resample kernels; the engines belong to the decoder. May be called twice."""
        self._launches.clear()
        self._opened.close()
