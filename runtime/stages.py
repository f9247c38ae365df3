"""The opened stages of a bundle: everything that can fail to open fails here, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .clock import Costs
from .device_encoding import DeviceEncoding, DeviceVolume
from .engines.engine import DeviceEngine, Engine, check_contract, warm
from .errors import InputError
from .kernels import open_kernels
from .language import LanguageModel
from .localization.localizer import NONE, Localizer, open_localizer
from .manifest import EncoderSpec
from .opened_graphs import Engines
from .pictures import Pictures, open_pictures, open_ranker, warm_pictures
from .preprocess import Preprocessor
from .volume import Volume

Floats = NDArray[np.float32]

MOST_THREADS = 512
"""ggml's own limit, GGML_MAX_N_THREADS."""


@dataclass(slots=True, kw_only=True)
class Stages:
    """All stages of a bundle, ready to run."""

    preprocessor: Preprocessor
    encoder: Engine
    language: LanguageModel | None
    pictures: Pictures | None
    localizer: Localizer | None
    placement: dict[str, str]
    engines: Engines
    """Every graph that was opened, and the GPU that they share."""
    device_encoding: DeviceEncoding | None = None
    """Where resample kernel and encoder run on one GPU, what joins them there."""

    def place(self, volume: Volume) -> Floats | DeviceVolume:
        """The tokens of a volume for `encode`: on the GPU where the encoder reads them there.

        Raises
        ------
        InputError
            As `Preprocessor.tokens`.
        """
        if self.device_encoding:
            return self.device_encoding.place(volume)
        return self.preprocessor.tokens(volume)

    def encode(
        self, tokens: Floats | DeviceVolume, wanted: Iterable[str] | None = None
    ) -> dict[str, Floats]:
        """The encoder's outputs.

        Parameters
        ----------
        tokens : (N, C) float32 or DeviceVolume
            Normalised; from `place`, or the caller's own.
        wanted : iterable of str, optional
            Names of outputs, all by default. From a GPU only these are copied; a CPU gives all.

        Raises
        ------
        InputError
            An output that is not finite.
        """
        names = self.encoder.outputs if wanted is None else wanted
        if self.device_encoding:
            encoded = self.device_encoding.encode(tokens, names)
        else:
            assert not isinstance(tokens, DeviceVolume), "only `device_encoding` makes them"
            encoded = self.encoder.run({"tokens": tokens[None]})
        for name, values in encoded.items():
            if not np.isfinite(values).all():
                raise self._not_finite(name, tokens)
        return encoded

    def _not_finite(self, name: str, tokens: Floats | DeviceVolume) -> InputError:
        on_gpu = isinstance(tokens, DeviceVolume)
        largest = float(np.abs(tokens).max()) if not on_gpu else self._largest_on_gpu()
        return InputError(
            f"the encoder's {name} is not finite for this volume, whose normalised values reach "
            f"{largest:.1e}; check the volume's units"
        )

    def _largest_on_gpu(self) -> float:
        assert self.device_encoding is not None, "it made them"
        return self.device_encoding.largest()

    def need_language(self) -> LanguageModel:
        """The language model; an InputError where the bundle has none."""
        if not self.language:
            raise InputError(
                "this bundle has no language model, so it cannot write text; ask for the image "
                "with the prompt 'none', or export the bundle with a language model"
            )
        return self.language

    def need_localizer(self) -> Localizer:
        """What places concepts; an InputError where the bundle has none."""
        if not self.localizer:
            raise InputError(NONE)
        return self.localizer

    def close(self) -> None:
        """Free what Python does not free by itself; may be called twice."""
        if self.localizer:
            self.localizer.close()
        if self.device_encoding:
            self.device_encoding.close()
        self.preprocessor.close()
        if self.language:
            self.language.close()
        if self.pictures:
            self.pictures.reconstruction.close()
        self.engines.close()


def open_stages(
    bundle: Bundle, devices: Mapping[str, str], threads: int, vram_bytes: int | None = None
) -> Stages:
    """Open every stage of a bundle.

    Parameters
    ----------
    bundle : Bundle
    devices : mapping
        Device of each stage, from `stage_devices`.
    threads : int
        CPU threads of each engine.
    vram_bytes : int, optional
        Most of the GPU's memory that may be used; by default all of it.

    Raises
    ------
    InputError
        A number of threads that no machine has.
    BundleError
        A file that does not load, or a graph that does not keep the manifest's contract.
    DeviceError
        A GPU that was asked for and cannot be used.
    MissingExtraError
        A library that is not installed.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(f"'threads' must be 1 to {MOST_THREADS}; got {threads}")
    engines = Engines(bundle, devices, threads, vram_bytes)
    try:
        return _open_stages(bundle, devices, threads, engines)
    except BaseException:
        engines.close()
        raise


def _open_stages(
    bundle: Bundle, devices: Mapping[str, str], threads: int, engines: Engines
) -> Stages:
    spec = bundle.manifest.encoder
    # the compiled kernel, whatever executes the graphs
    place = "cpu" if devices["preprocess"] == "cpu" else "cuda"
    kernels = open_kernels(bundle) if place == "cuda" else None

    def open_preprocessor(encoder: EncoderSpec) -> Preprocessor:
        arrays, scale = bundle.arrays(encoder.arrays), bundle.manifest.input.scale
        return Preprocessor(encoder, arrays, scale, threads, device=place, kernels=kernels)

    preprocessor = open_preprocessor(spec)
    encoder = engines.open("encoder", spec.file)
    check_contract(encoder, spec.inputs, spec.outputs)
    placement = {"preprocess": preprocessor.provider, "encoder": encoder.provider}
    pictures = None
    localizer = open_localizer(
        bundle, preprocessor, open_preprocessor, engines.open, placement, threads
    )
    if bundle.manifest.diffusion:
        diffusion = bundle.manifest.diffusion
        pictures = open_pictures(bundle, diffusion, engines.open, placement)
        pictures.ranker = open_ranker(bundle, diffusion, engines.open, placement)
    language = None
    if bundle.manifest.language:
        text = bundle.manifest.language
        language = LanguageModel(
            bundle.path(text.file), text, threads=threads, device=devices["language"]
        )
        placement["language"] = language.provider
    device_encoding = None
    if isinstance(encoder, DeviceEngine) and preprocessor.kernels is not None:
        device_encoding = DeviceEncoding(preprocessor, encoder)
    return Stages(
        preprocessor=preprocessor,
        encoder=encoder,
        language=language,
        pictures=pictures,
        localizer=localizer,
        placement=placement,
        engines=engines,
        device_encoding=device_encoding,
    )


def warm_up(stages: Stages, costs: Costs) -> None:
    """Run every stage once on zeros: memory is allocated, kernels are chosen, costs are known."""
    if stages.device_encoding:
        stages.device_encoding.warm()
    with costs.measured("encode"):
        warm(stages.encoder)
    if stages.localizer:
        stages.localizer.warm_up(costs)
    if stages.language:
        _warm_language(stages.language, stages.encoder, costs)
    if stages.pictures:
        outputs = stages.encoder.outputs
        clip, latent = (np.zeros(outputs[name].shape, np.float32) for name in ("clip", "latent"))
        warm_pictures(stages.pictures, clip, latent, costs)


def _warm_language(language: LanguageModel, encoder: Engine, costs: Costs) -> None:
    with costs.measured("attend"):
        language.attend(np.zeros(encoder.outputs["prefix"].shape[1:], np.float32))
    answer = language.answer("?", limit=4)
    with costs.measured("answer"):
        answer.read()
    costs.learn("token", answer.token_s)
