"""From a volume in host memory to a picture in host memory, with nothing on the host in between.

The volume in, from pinned memory, the resample kernel, the encoder; noise, drawn meanwhile; all
denoising steps, the VAE, and the pixels out: everything is enqueued on one stream and waited for
once.

    with Decoder.open("reference", device="cuda,language=cpu,concept_encoder=cpu") as decoder:
        chain = DeviceChain(decoder.stages)
        made = chain.picture(load_volume("trial.nii.gz"), steps=4, seed=0)
        made.pixels, chain.encoded()["clip"]

`Decoder.decode` looks at the encoder's answers on the way, and waits twice.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from .denoising import Whole
from .engines.engine import DeviceEngine
from .errors import DeviceError, ScansideError
from .reconstruction import philox
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
        encoder, pictures, joined = stages.encoder, stages.pictures, stages.device_encoding
        denoiser = pictures.reconstruction.on_gpu if pictures else None
        if pictures is None or denoiser is None:
            raise DeviceError(
                "the chain needs U-Net and VAE on a GPU; open the decoder with device='cuda'"
            )
        if joined is None or not isinstance(encoder, DeviceEngine):
            raise DeviceError(
                "the chain needs preprocess and encoder on the GPU; open the decoder with "
                "device='cuda'"
            )
        self._encoder, self._joined, self._denoiser = encoder, joined, denoiser
        self._picture = pictures.reconstruction
        self._empty = pictures.prompt.empty
        self.gpu = encoder.gpu

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
        buffers, plan = self._encoder.buffers, self._picture.plan(steps)
        try:
            made = self._denoiser.from_device(
                partial(self._joined.enqueue, volume),
                buffers["clip"],
                buffers["latent"],
                self._empty if states is None else states,
                plan,
                self._picture.beta,
                philox(seed),
            )
        except ScansideError:
            self.gpu.wait()
            self._joined.check(volume)  # which would be the reason
            raise
        self._joined.check(volume)
        return made

    def preview(self, volume: Volume) -> NDArray[np.uint8]:
        """The predicted latent as (H, W, 3) uint8, through the tiny decoder if the bundle has one.

        Parameters and errors are those of `picture`; DeviceError where the tiny decoder is not on
        the GPU.
        """
        shown = self._picture.preview_on_gpu
        if shown is None:
            raise DeviceError(
                "the chain's previews need the tiny decoder on the GPU; open the decoder with "
                "device='cuda'"
            )
        self._joined.enqueue(volume)
        latent = self._encoder.buffers["latent"]
        self._denoiser.resident.copy_latent(latent, shown.decoder.buffers["latent"])
        shown.enqueue()
        self.gpu.wait()
        self._joined.check(volume)
        return shown.read()

    def encoded(self) -> dict[str, Floats]:
        """The encoder's answers for the last volume, copied out: clip, latent, prefix, others."""
        outputs, buffers = self._encoder.outputs, self._encoder.buffers
        found = {name: np.empty(spec.shape, spec.dtype) for name, spec in outputs.items()}
        for name, values in found.items():
            self.gpu.download(buffers[name], values)
        self.gpu.wait()
        return {name: values.astype(np.float32) for name, values in found.items()}
