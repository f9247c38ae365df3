"""What `Decoder.stream` yields, each as soon as it is there: preview, heat map, text, image,
result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .localization.location import Location
from .result import Result


@dataclass(frozen=True, slots=True, eq=False)
class Preview:
    """The predicted latent, decoded without diffusion."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""


@dataclass(frozen=True, slots=True)
class Token:
    """More text; the pieces of one task, joined, are its answer."""

    task: str
    """caption, describe, prompt, or ask."""
    text: str
    question: str | None = None
    """Which question, when the task is ask."""


@dataclass(frozen=True, slots=True, eq=False)
class Intermediate:
    """The picture as it is guessed on the way, through the tiny decoder where there is one."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    step: int
    """Denoising steps taken so far."""
    of: int


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """The reconstructed picture; with several candidates once for each that fits better."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    steps: int
    """Denoising steps taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """Where a concept is in the brain."""

    location: Location


@dataclass(frozen=True, slots=True)
class Pause:
    """A place where other volumes may be decoded before this one goes on; only if asked for."""

    before: str
    """What comes next: text or image."""


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """The end of the stream."""

    result: Result


Event: TypeAlias = Preview | Token | Intermediate | Image | Heatmap | Pause | Done
