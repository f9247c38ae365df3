"""The opened stages of a bundle: everything that can fail to open fails here, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .clock import Costs
from .engines.engine import Engine, check_contract, warm
from .engines.onnx_cpu import OnnxEngine
from .errors import InputError
from .kernels import open_kernels
from .language import LanguageModel
from .localization.localizer import NONE, Localizer, open_localizer
from .manifest import EncoderSpec
from .pictures import Pictures, open_pictures, open_ranker, warm_pictures
from .preprocess import Preprocessor

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

    def encode(self, tokens: Floats) -> dict[str, Floats]:
        """The encoder's outputs for normalised tokens, (N, C) float32.

        Raises
        ------
        InputError
            An output that is not finite.
        """
        encoded = self.encoder.run({"tokens": tokens[None]})
        for name, values in encoded.items():
            if not np.isfinite(values).all():
                raise InputError(
                    f"the encoder's {name} is not finite for this volume, whose normalised values "
                    f"reach {np.abs(tokens).max():.1e}; check the volume's units"
                )
        return encoded

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
        self.preprocessor.close()
        if self.language:
            self.language.close()


def open_stages(bundle: Bundle, devices: Mapping[str, str], threads: int) -> Stages:
    """Open every stage of a bundle.

    Parameters
    ----------
    bundle : Bundle
    devices : mapping
        Device of each stage, from `stage_devices`.
    threads : int
        CPU threads of each engine.

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
    spec = bundle.manifest.encoder
    kernels = open_kernels(bundle) if devices["preprocess"] == "cuda" else None

    def open_preprocessor(encoder: EncoderSpec) -> Preprocessor:
        arrays, scale = bundle.arrays(encoder.arrays), bundle.manifest.input.scale
        return Preprocessor(
            encoder, arrays, scale, threads, device=devices["preprocess"], kernels=kernels
        )

    preprocessor = open_preprocessor(spec)
    encoder = open_stage(bundle, devices, threads, "encoder", spec.file)
    check_contract(encoder, spec.inputs, spec.outputs)
    placement = {"preprocess": preprocessor.provider, "encoder": encoder.provider}
    pictures = None
    open_one = partial(open_stage, bundle, devices, threads)
    localizer = open_localizer(
        bundle, preprocessor, open_preprocessor, open_one, placement, threads
    )
    if bundle.manifest.diffusion:
        diffusion = bundle.manifest.diffusion
        pictures = open_pictures(bundle, diffusion, open_one, placement)
        pictures.ranker = open_ranker(bundle, diffusion, open_one, placement)
    language = None
    if bundle.manifest.language:
        text = bundle.manifest.language
        language = LanguageModel(bundle.path(text.file), text, threads=threads)
        placement["language"] = language.provider
    return Stages(
        preprocessor=preprocessor,
        encoder=encoder,
        language=language,
        pictures=pictures,
        localizer=localizer,
        placement=placement,
    )


def open_stage(
    bundle: Bundle, devices: Mapping[str, str], threads: int, stage: str, file: str
) -> Engine:
    """A graph on the device chosen for its stage; further backends come in here."""
    assert devices[stage] == "cpu", "stage_devices lets no other device through"
    return OnnxEngine(stage, bundle.path(file), threads)


def warm_up(stages: Stages, costs: Costs) -> None:
    """Run every stage once on zeros: memory is allocated, kernels are chosen, costs are known."""
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
