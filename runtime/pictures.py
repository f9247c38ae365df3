"""The stages that make pictures, opened and held against each other and the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .clock import Costs
from .denoising import Condition
from .engines.engine import Engine, check_contract
from .errors import BundleError
from .manifest import DiffusionSpec, EncoderSpec, TensorSpec
from .prompt import PromptEncoder
from .ranking import PictureRanker
from .reconstruction import Reconstruction

Floats = NDArray[np.float32]
OpenEngine = Callable[[str, str], Engine]
"""Opens the graph of a stage from a file of the bundle."""

_QUICK_S = 0.5
"""A stage that runs for less is run twice at warm-up: its first run is mostly allocation."""


@dataclass(slots=True, kw_only=True)
class Pictures:
    """The stages that make pictures."""

    prompt: PromptEncoder
    reconstruction: Reconstruction
    ranker: PictureRanker | None = None
    """Compares a picture with a CLIP vector; None where the bundle has no image encoder."""


def open_pictures(
    bundle: Bundle, spec: DiffusionSpec, open_engine: OpenEngine, placement: dict[str, str]
) -> Pictures:
    """Open prompt encoder, U-Net, VAE and tiny decoder, and note where each runs in `placement`.

    Raises
    ------
    BundleError
        Graphs that do not fit each other, the encoder or the manifest.
    """
    files = {  # the largest first: while it is opened its file is in memory, too
        "unet": spec.unet,
        "prompt_encoder": spec.prompt_encoder,
        "vae_decoder": spec.vae_decoder,
    }
    if spec.preview_decoder:
        files["preview_decoder"] = spec.preview_decoder
    engines = {name: open_engine(name, file) for name, file in files.items()}
    _check(engines, spec, bundle.manifest.encoder)
    placement |= {name: engine.provider for name, engine in engines.items()}
    prompt = PromptEncoder(engines["prompt_encoder"], bundle.path(spec.prompt_tokenizer), spec)
    reconstruction = Reconstruction(
        engines["unet"],
        engines["vae_decoder"],
        spec,
        bundle.arrays(spec.arrays),
        prompt.empty,
        tiny=engines.get("preview_decoder"),
    )
    return Pictures(prompt=prompt, reconstruction=reconstruction)


def open_ranker(
    bundle: Bundle, spec: DiffusionSpec, open_engine: OpenEngine, placement: dict[str, str]
) -> PictureRanker | None:
    """Open the image encoder, if the bundle has one; BundleError if it does not fit."""
    if not spec.image_encoder:
        return None
    engine = open_engine("image_encoder", spec.image_encoder)
    clip = bundle.manifest.encoder.outputs["clip"].shape[1]
    check_contract(engine, {"image": _float(1, 3, *spec.image_size)}, {"clip": _float(1, clip)})
    placement["image_encoder"] = engine.provider
    return PictureRanker(engine)


def _check(engines: Mapping[str, Engine], spec: DiffusionSpec, encoder: EncoderSpec) -> None:
    """The graphs must fit each other, the encoder and the manifest."""
    states = engines["prompt_encoder"].outputs.get("states")
    if states is None or len(states.shape) != 3:
        raise BundleError(
            f"{spec.prompt_encoder} gives no states (1, L, W); export the bundle again"
        )
    length, width = spec.prompt_length, states.shape[2]
    batch = 2 if spec.guidance > 1 else 1
    clip = encoder.outputs["clip"].shape[1]
    latent = spec.latent_shape
    time = engines["unet"].inputs.get("time", _float(1, 0)).shape[-1]
    check_contract(
        engines["prompt_encoder"],
        {"input_ids": TensorSpec(shape=(1, length), dtype="int64")},
        {"states": _float(1, length, width)},
    )
    check_contract(
        engines["unet"],
        {
            "sample": _float(batch, *latent),
            "time": _float(1, time),
            "states": _float(batch, length, width),
            "class_labels": _float(batch, 2 * clip),
        },
        {"out": _float(batch, *latent)},
    )
    for name in ("vae_decoder", "preview_decoder"):
        if name in engines:
            check_contract(
                engines[name],
                {"latent": _float(1, *latent)},
                {"image": _float(1, 3, *spec.image_size)},
            )


def _float(*shape: int) -> TensorSpec:
    return TensorSpec(shape=shape, dtype="float32")


def warm_pictures(pictures: Pictures, clip: Floats, latent: Floats, costs: Costs) -> None:
    """Run every picture stage on zeros, and learn what it costs.

    Parameters
    ----------
    clip : (1, D) float32
    latent : (1, 4, h, w) float32
    """
    picture = pictures.reconstruction
    states = pictures.prompt.empty
    condition = Condition(clip=clip, latent=latent, states=states)
    steps = picture.fewest_steps
    # not "", whose states are remembered
    _learn(costs, "states", lambda: pictures.prompt.encode("?", remember=False))
    _learn(costs, "step", lambda: picture.denoise(condition, steps=steps, seed=0), per=steps)
    _learn(costs, "vae", lambda: picture.pixels(latent))
    if picture.has_tiny:
        _learn(costs, "preview", lambda: picture.preview_pixels(latent))
    if pictures.ranker:
        ranker, image = pictures.ranker, picture.decode(latent)
        _learn(costs, "rank", lambda: ranker.similarity(image, np.ones_like(clip)))


def _learn(costs: Costs, stage: str, work: Callable[[], object], per: int = 1) -> None:
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    if took < _QUICK_S:
        began = time.perf_counter()
        work()
        took = time.perf_counter() - began
    costs.learn(stage, took / per)
