"""The opened stages of a bundle: everything that can fail to open fails here, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .clock import Costs
from .engine import Engine, OnnxEngine, check_contract, warm
from .errors import BundleError, InputError
from .kernels import open_kernels
from .language import LanguageModel
from .manifest import DiffusionSpec, EncoderSpec, TensorSpec
from .preprocess import Preprocessor
from .prompt import PromptEncoder
from .reconstruction import Condition, Reconstruction

Floats = NDArray[np.float32]

MOST_THREADS = 512
"""ggml's own limit, GGML_MAX_N_THREADS."""


@dataclass(slots=True, kw_only=True)
class Pictures:
    """The stages that make pictures."""

    prompt: PromptEncoder
    reconstruction: Reconstruction


@dataclass(slots=True, kw_only=True)
class Stages:
    """All stages of a bundle, ready to run."""

    preprocessor: Preprocessor
    encoder: Engine
    language: LanguageModel | None
    pictures: Pictures | None
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

    def close(self) -> None:
        """Free what Python does not free by itself; may be called twice."""
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
    arrays, scale = bundle.arrays(spec.arrays), bundle.manifest.input.scale
    kernels = open_kernels(bundle) if devices["preprocess"] == "cuda" else None
    preprocessor = Preprocessor(
        spec, arrays, scale, threads, device=devices["preprocess"], kernels=kernels
    )
    encoder = open_engine("encoder", bundle, spec.file, devices, threads)
    check_contract(encoder, spec.inputs, spec.outputs)
    placement = {"preprocess": preprocessor.provider, "encoder": encoder.provider}
    pictures = None
    if bundle.manifest.diffusion:
        pictures = open_pictures(bundle, bundle.manifest.diffusion, devices, threads, placement)
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
        placement=placement,
    )


def open_engine(
    stage: str, bundle: Bundle, file: str, devices: Mapping[str, str], threads: int
) -> Engine:
    """A graph on the device chosen for its stage; further backends come in here."""
    assert devices[stage] == "cpu", "stage_devices lets no other device through"
    return OnnxEngine(stage, bundle.path(file), threads)


def open_pictures(
    bundle: Bundle,
    spec: DiffusionSpec,
    devices: Mapping[str, str],
    threads: int,
    placement: dict[str, str],
) -> Pictures:
    """Open the prompt encoder, the U-Net and the VAE, and note where each runs in `placement`."""
    files = {
        "prompt_encoder": spec.prompt_encoder,
        "unet": spec.unet,
        "vae_decoder": spec.vae_decoder,
    }
    engines = {n: open_engine(n, bundle, f, devices, threads) for n, f in files.items()}
    _check_pictures(engines, spec, bundle.manifest.encoder)
    placement |= {name: engine.provider for name, engine in engines.items()}
    prompt = PromptEncoder(engines["prompt_encoder"], bundle.path(spec.prompt_tokenizer), spec)
    arrays = bundle.arrays(spec.arrays)
    reconstruction = Reconstruction(
        engines["unet"], engines["vae_decoder"], spec, arrays, prompt.empty
    )
    return Pictures(prompt=prompt, reconstruction=reconstruction)


def _check_pictures(
    engines: Mapping[str, Engine], spec: DiffusionSpec, encoder: EncoderSpec
) -> None:
    """The three graphs must fit each other, the encoder and the manifest."""
    states = engines["prompt_encoder"].outputs.get("states")
    if states is None or len(states.shape) != 3:
        raise BundleError(
            f"{spec.prompt_encoder} gives no states (1, L, W); export the bundle again"
        )
    length, width = spec.prompt_length, states.shape[2]
    batch = 2 if spec.guidance > 1 else 1
    clip = encoder.outputs["clip"].shape[1]
    latent = spec.latent_shape
    timestep = engines["unet"].inputs.get("timestep", TensorSpec(shape=(), dtype="float32")).dtype
    check_contract(
        engines["prompt_encoder"],
        {"input_ids": TensorSpec(shape=(1, length), dtype="int64")},
        {"states": _float(1, length, width)},
    )
    check_contract(
        engines["unet"],
        {
            "sample": _float(batch, *latent),
            "timestep": TensorSpec(shape=(1,), dtype="int64" if timestep == "int64" else "float32"),
            "states": _float(batch, length, width),
            "class_labels": _float(batch, 2 * clip),
        },
        {"out": _float(batch, *latent)},
    )
    check_contract(
        engines["vae_decoder"],
        {"latent": _float(1, *latent)},
        {"image": _float(1, 3, *spec.image_size)},
    )


def _float(*shape: int) -> TensorSpec:
    return TensorSpec(shape=shape, dtype="float32")


def warm_up(stages: Stages, costs: Costs) -> None:
    """Run every stage once on zeros: memory is allocated, kernels are chosen, costs are known."""
    with costs.measured("encode"):
        warm(stages.encoder)
    if stages.language:
        _warm_language(stages.language, stages.encoder, costs)
    if stages.pictures:
        _warm_pictures(stages.pictures, stages.encoder, costs)


def _warm_language(language: LanguageModel, encoder: Engine, costs: Costs) -> None:
    with costs.measured("attend"):
        language.attend(np.zeros(encoder.outputs["prefix"].shape[1:], np.float32))
    answer = language.answer("?", limit=4)
    with costs.measured("answer"):
        answer.read()
    costs.learn("token", answer.token_s)


def _warm_pictures(pictures: Pictures, encoder: Engine, costs: Costs) -> None:
    zeros = {n: np.zeros(encoder.outputs[n].shape, np.float32) for n in ("clip", "latent")}
    with costs.measured("states"):
        states, _ = pictures.prompt.encode("")
    picture = pictures.reconstruction
    condition = Condition(clip=zeros["clip"], latent=zeros["latent"], states=states)
    steps = picture.fewest_steps
    with costs.measured("step", per=steps):
        clean = picture.denoise(condition, steps=steps, seed=0)
    with costs.measured("vae"):
        picture.decode(clean)
