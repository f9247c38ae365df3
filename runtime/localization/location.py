"""What localization gives: a heat map, and what is left of a concept once its voxels are gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..result import Result

Image = Any
"""A nibabel image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Location:
    """Where one concept is in one volume; its map is made when it is first looked at."""

    concept: str
    similarity: float
    """Cosine between decoded CLIP vector and concept, the mean over encoders: how much of the
    concept there is, which a scaled map does not say."""
    relevance: tuple[NDArray[np.float32], ...]
    """(N,) for each encoder: signed and unscaled, in the order of its cubes."""
    _draw: Callable[[], NDArray[np.float32]] = field(repr=False)
    _carry: Callable[[NDArray[np.float32]], Image] = field(repr=False)

    @cached_property
    def grid(self) -> NDArray[np.float32]:
        """(X, Y, Z) the map on the model grid; 0 to 1 with the usual scaling."""
        return self._draw()

    @cached_property
    def heat(self) -> Image:
        """The map as a nibabel image, float32, on the volume's own grid and affine."""
        return self._carry(self.grid)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ablation:
    """A volume decoded again without the voxels that a concept was located in."""

    concept: str
    location: Location
    voxels: int
    """Voxels of the model grid that were set to the mean brain's."""
    before: Result
    after: Result
    """Without the located voxels."""
    similarity: float
    """Cosine between decoded CLIP vector and concept, before."""
    similarity_after: float
    similarity_random: float
    """Without as many random active voxels."""

    @property
    def drop(self) -> float:
        """How far similarity fell without the located voxels."""
        return self.similarity - self.similarity_after

    @property
    def random_drop(self) -> float:
        """How far it fell without as many random ones."""
        return self.similarity - self.similarity_random
