"""The paper's validation: without the voxels that were found, is the concept gone?

Voxels are set to 0 after normalisation, which is the mean brain's value. Beside them stand as many
random active voxels, since taking any voxels away costs something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..result import Result
from .heat import scale
from .localizer import Localizer
from .location import Ablation, Location

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One volume on its way through an ablation."""

    tokens: Floats
    """(N, C) normalised, of the encoder that decodes."""
    live: Mask
    """(N, C) elements that are voxels of the grid and not masked."""
    vector: Floats
    """(E,) of the concept."""
    clip: Callable[[Floats], Floats]
    """Decoded CLIP vector (E,) of tokens."""
    decode: Callable[[Floats], Result]


def check_threshold(threshold: float) -> float:
    """InputError unless a threshold can split a map that is scaled to 0 to 1."""
    if not 0 <= threshold <= 1:
        raise InputError(f"'threshold' must be from 0 to 1; got {threshold}")
    return threshold


def ablate(
    localizer: Localizer, location: Location, subject: Subject, threshold: float, seed: int
) -> Ablation:
    """Decode a volume with and without the voxels of a location.

    Parameters
    ----------
    threshold : float
        From which value of the map, scaled to its largest, on a voxel is taken away; 0 to 1.
    seed : int
        Of the random voxels.

    Raises
    ------
    InputError
        No voxel is located, since nothing in the volume speaks for the concept.
    """
    found = located(localizer, location, subject.live, threshold)
    count = int(found.sum())
    if not count:
        raise InputError(
            f"nothing in this volume speaks for {location.concept!r}, so there are no voxels to "
            "take away; choose another concept"
        )
    without = np.where(found, np.float32(0), subject.tokens)
    control = np.where(random_like(found, subject.live, seed), np.float32(0), subject.tokens)
    kept, gone, random = (
        _cosine(subject.clip(tokens), subject.vector)
        for tokens in (subject.tokens, without, control)
    )
    return Ablation(
        concept=location.concept,
        location=location,
        voxels=count,
        before=subject.decode(subject.tokens),
        after=subject.decode(without),
        similarity=kept,
        similarity_after=gone,
        similarity_random=random,
    )


def located(localizer: Localizer, location: Location, live: Mask, threshold: float) -> Mask:
    """Which live elements (N, C) of the decoding encoder's tokens a map marks."""
    heat = localizer.members[0].cubes.tokens_of(scale(location.grid, "max"))
    return (heat >= max(threshold, float(np.finfo(np.float32).tiny))) & live


def random_like(found: Mask, live: Mask, seed: int) -> Mask:
    """As many random live elements as were found."""
    choices = np.flatnonzero(live)
    chosen = np.zeros(live.size, bool)
    rng = np.random.default_rng(seed)
    chosen[rng.choice(choices, size=int(found.sum()), replace=False)] = True
    return chosen.reshape(live.shape)


def _cosine(one: Floats, other: Floats) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
