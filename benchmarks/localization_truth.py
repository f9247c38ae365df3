"""Where concepts are in the reference world, where the truth is known.

A voxel carries a concept in a trial to the degree that its response changes when the concept is
taken out of the scene: the size of its tuning times the features of that colour or shape at that
place. Sign does not matter: a voxel that falls silent tells as much. The top tenth of a subject's
visual voxels are the carriers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from scanside.export.reference.features import (
    COLOUR_AXES,
    CONTRAST,
    FEATURES,
    PER_PLACE,
    SHAPE_AXES,
    STRENGTH,
)
from scanside.export.reference.noise import Brain
from scanside.export.reference.scenes import COLOURS, SHAPES, Scenes
from scanside.export.reference.world import Subject
from scanside.runtime.localization.localizer import Localizer, Member
from scanside.runtime.volume import Volume

CARRIERS = 0.1
"""Share of the visual voxels that count as carrying a concept."""
KINDS = ("shape", "colour", "object")

brain = cache(lambda name: Brain(Subject(name)))
"""Of a subject, by name."""


@dataclass(frozen=True, slots=True)
class Concept:
    """A concept that is true of a scene, and the features that stand for it."""

    kind: str
    text: str
    features: NDArray[np.float64]


def concepts_of(scenes: Scenes, i: int) -> list[Concept]:
    """Shape, colour, and both together, of every object of a scene."""
    found: list[Concept] = []
    for row in scenes.things[i].astype(int):
        if row[0] < 0:
            continue
        shape, colour, size, place = row
        at = place * PER_PLACE
        of_colour, of_shape, rest = np.zeros((3, FEATURES))
        of_colour[at + 1 : at + 4] = STRENGTH[size] * COLOUR_AXES[colour]
        of_shape[at + 4 : at + 7] = STRENGTH[size] * SHAPE_AXES[shape]
        rest[at] = CONTRAST[size]
        found += [
            Concept("shape", SHAPES[shape], of_shape),
            Concept("colour", COLOURS[colour], of_colour),
            Concept("object", f"{COLOURS[colour]} {SHAPES[shape]}", of_colour + of_shape + rest),
        ]
    return found


def absent(scenes: Scenes, i: int, kind: str, rng: np.random.Generator) -> str:
    """A concept of the same kind that the scene does not hold."""
    things = [row for row in scenes.things[i].astype(int) if row[0] >= 0]
    shapes = [name for k, name in enumerate(SHAPES) if k not in {row[0] for row in things}]
    colours = [name for k, name in enumerate(COLOURS) if k not in {row[1] for row in things}]
    shape, colour = str(rng.choice(shapes)), str(rng.choice(colours))
    return {"shape": shape, "colour": colour, "object": f"{colour} {shape}"}[kind]


def carriers(subject: str, concept: Concept) -> NDArray[np.bool_]:
    """(V,) which visual voxels of a subject carry a concept."""
    size = np.abs(brain(subject).weights @ concept.features)
    return size > np.quantile(size, 1 - CARRIERS)


def perfect_rows(
    localizer: Localizer, subject: str, place: NDArray[np.float64], truth: NDArray[np.bool_]
) -> list[NDArray[np.float32]]:
    """For each encoder the share of carriers among the visual voxels of each cube: the best map
    that one number a cube can make.

    Parameters
    ----------
    place : (4, 4) float64
        The affine of the volume as it was stored, axes R, A, S.
    """
    mask = brain(subject).subject.mask
    marked = np.zeros(mask.shape, np.float32)
    marked[mask] = truth
    return [_share(member, marked, mask.astype(np.float32), place) for member in localizer.members]


def _share(
    member: Member,
    marked: NDArray[np.float32],
    mask: NDArray[np.float32],
    place: NDArray[np.float64],
) -> NDArray[np.float32]:
    some, every = (
        member.preprocessor.tokens(Volume(data=data.T, affine=place), normalised=False).sum(1)
        for data in (marked, mask)
    )
    return np.where(every > 0, some / np.maximum(every, 1e-6), 0).astype(np.float32)


def auroc(truth: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """How often a marked element has a higher score than one that is not; ties count half."""
    ranks = rankdata(score)
    ones = int(truth.sum())
    zeros = len(truth) - ones
    return float((ranks[truth].sum() - ones * (ones + 1) / 2) / (ones * zeros))
