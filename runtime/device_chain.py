"""From a volume in host memory to a picture in host memory, with nothing on the host in between.

One copy in (volume and noise, from pinned memory), the resample kernel, the encoder, all denoising
steps, the VAE, and the pixels out: everything is enqueued on one stream and waited for once.

    with Decoder.open("reference", device="cuda,language=cpu,concept_encoder=cpu") as decoder:
        chain = DeviceChain(decoder.stages)
        made = chain.picture(load_volume("trial.nii.gz"), steps=4, seed=0)
        made.pixels, chain.encoded()["clip"]
        chain.close()

`Decoder.decode` looks at the encoder's answers on the way, and waits twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .device_tokens import DeviceTokens, flat
from .engines.engine import DeviceEngine
from .errors import DeviceError
from .reconstruction import Whole
from .stages import Stages
from .volume import Volume

Floats = NDArray[np.float32]


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
        self._picture = pictures.reconstruction
        self._empty = pictures.prompt.empty
        self.gpu = encoder.gpu
        tokens = encoder.buffers["tokens"]
        self._tokens = DeviceTokens(stages.preprocessor, tokens, self.gpu)

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
        data, raw = self._made_room(volume)
        resident = self._picture.on_device
        resident.inbox[: raw.nbytes] = raw
        launch = self._tokens.launch_of(volume, data, resident.room)

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

    def preview(self, volume: Volume) -> NDArray[np.uint8]:
        """The predicted latent as (H, W, 3) uint8, through the tiny decoder if the bundle has one.

        Parameters and errors are those of `picture`; DeviceError where the tiny decoder is not on
        the GPU.
        """
        shown, resident = self._picture.preview_on_device, self._picture.on_device
        if shown is None:
            raise DeviceError(
                "the chain's previews need the tiny decoder on the GPU; open the decoder with "
                "device='cuda'"
            )
        data, raw = self._made_room(volume)
        self.gpu.send(raw, resident.inbox, resident.room)
        self._tokens.launch_of(volume, data, resident.room)(self.gpu.stream)
        self._encoder.launch()
        resident.copy_latent(self._encoder.buffers["latent"], shown.decoder.buffers["latent"])
        shown.enqueue()
        self.gpu.wait()
        return shown.read()

    def encoded(self) -> dict[str, Floats]:
        """The encoder's answers for the last volume, copied out: clip, latent, prefix, others."""
        outputs, buffers = self._encoder.outputs, self._encoder.buffers
        found = {name: np.empty(spec.shape, spec.dtype) for name, spec in outputs.items()}
        for name, values in found.items():
            self.gpu.download(buffers[name], values)
        self.gpu.wait()
        return {name: values.astype(np.float32) for name, values in found.items()}

    def _made_room(self, volume: Volume) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """The volume as `flat` gives it, once the inbox has room for it."""
        data, raw = flat(volume)
        if raw.nbytes > self._picture.on_device.inbox.nbytes:
            self._picture.on_device.reserve(raw.nbytes)
        return data, raw

    def close(self) -> None:
        """Unload the resample kernels; the engines belong to the decoder. May be called twice."""
        self._tokens.close()
