"""A machine's own answers against the golden ones that were recorded at export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .denoising import Condition
from .errors import BundleError
from .language import LanguageModel
from .localization.localizer import Localizer, golden_numbers
from .manifest import GoldenSpec
from .pictures import Pictures
from .stages import Stages
from .volume import load_volume

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison."""

    what: str
    passed: bool
    measured: str
    """What was found, for people."""
    allowed: str
    """What would have passed."""


def golden_checks(bundle: Bundle, stages: Stages, golden: GoldenSpec) -> Iterator[Check]:
    """Compare every stage, each fed with its own golden input, so that a fault shows in one place.

    Parameters
    ----------
    bundle : Bundle
    stages : Stages
        Opened from the same bundle.
    golden : GoldenSpec

    Yields
    ------
    check : Check
    """
    wanted = bundle.arrays(golden.outputs)
    fed = ["tokens"]
    fed += ["hidden", "concept"] if stages.localizer else []
    fed += ["prefix"] if stages.language else []
    fed += ["clip", "latent", "states", "image_latent"] if stages.pictures else []
    missing = [name for name in fed if name not in wanted]
    if missing:
        raise BundleError(f"{golden.outputs} lacks {', '.join(missing)}; export the bundle again")
    tokens = stages.preprocessor.tokens(load_volume(bundle.path(golden.volume)))
    yield _numbers("tokens", tokens, wanted, golden)
    encoded = stages.encoder.run({"tokens": wanted["tokens"].reshape(1, *tokens.shape)})
    for name in encoded:
        yield _numbers(name, encoded[name], wanted, golden)
    if stages.localizer:
        yield from _places(stages.localizer, bundle, wanted, golden)
    if stages.language:
        yield from _texts(stages.language, wanted, golden)
    if stages.pictures:
        yield from _pictures(stages.pictures, wanted, golden)


def _places(
    localizer: Localizer, bundle: Bundle, wanted: Arrays, golden: GoldenSpec
) -> Iterator[Check]:
    if golden.concept:
        vectors = localizer.concepts.vectors([golden.concept])
        yield _numbers("concept", vectors, wanted, golden)
    volume = load_volume(bundle.path(golden.volume))
    for name, found in golden_numbers(localizer, volume, wanted):
        yield _numbers(name, found, wanted, golden)


def _texts(language: LanguageModel, wanted: Arrays, golden: GoldenSpec) -> Iterator[Check]:
    language.attend(wanted["prefix"][0])
    for task, text in golden.texts.items():
        found = language.answer(language.instruction(task), task=task).read()
        same = found == text
        measured = "the same text" if same else f"{_short(found)} instead of {_short(text)}"
        yield Check(what=task, passed=same, measured=measured, allowed="the same text")


def _pictures(pictures: Pictures, wanted: Arrays, golden: GoldenSpec) -> Iterator[Check]:
    picture = pictures.reconstruction
    yield _numbers("preview", picture.decode(wanted["latent"]), wanted, golden)
    if picture.has_tiny:
        yield _numbers("tiny_preview", picture.preview(wanted["latent"]), wanted, golden)
    states, _ = pictures.prompt.encode(golden.image_prompt)
    yield _numbers("states", states, wanted, golden)
    condition = Condition(clip=wanted["clip"], latent=wanted["latent"], states=wanted["states"])
    clean = picture.denoise(
        condition, steps=golden.steps, seed=golden.seed, schedule=golden.schedule
    )
    yield _numbers("image_latent", clean, wanted, golden)
    yield _numbers("image", picture.decode(wanted["image_latent"]), wanted, golden)
    if pictures.ranker:
        yield _numbers("image_clip", pictures.ranker.encode(wanted["image"]), wanted, golden)


def _numbers(name: str, found: NDArray[Any], wanted: Arrays, golden: GoldenSpec) -> Check:
    kind = name.partition("_")[0] if name not in golden.tolerance else name
    if name not in wanted or kind not in golden.tolerance:
        raise BundleError(
            f"{golden.outputs} or its tolerances lack {name}; export the bundle again"
        )
    expected = wanted[name].reshape(found.shape)
    largest = float(np.abs(expected).max()) or 1.0
    difference = float(np.abs(found - expected).max()) / largest
    allowed = golden.tolerance[kind]
    return Check(
        what=name,
        passed=difference <= allowed,
        measured=f"{difference:.1e} relative",
        allowed=f"{allowed:.0e}",
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
