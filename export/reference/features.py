"""What the simulated brain encodes of a scene: a vector of 67 numbers, and the way back from an
estimate of it.

For each of nine places: contrast (1), colour (3, corners of the colour cube), shape (3, vertices
of an octahedron); then four numbers for the background. A small object has less contrast than a
large one.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, Scenes

COLOUR_AXES = np.array(
    [
        (1, -1, -1),
        (-1, 1, -1),
        (-1, -1, 1),
        (1, 1, -1),
        (-1, 1, 1),
        (1, -1, 1),
        (1, 1, 1),
        (-1, -1, -1),
    ]
) / np.sqrt(3)
"""(8, 3) red, green and blue content of each colour, unit length."""
SHAPE_AXES = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], float)
"""(6, 3) unit length; opposite shapes excite and suppress the same voxels."""
CONTRAST = np.array([0.6, 1.0])
"""Contrast of a small and of a large object."""
STRENGTH = np.array([0.8, 1.0])
"""How strongly a small and a large object drive colour and shape."""
PER_PLACE = 7
FEATURES = PER_PLACE * len(PLACES) + len(BACKGROUNDS)


def encode(scenes: Scenes) -> NDArray[np.float32]:
    """Feature vectors f of scenes, (B, 67) float32."""
    out = np.zeros((len(scenes), FEATURES), np.float32)
    rows, slots = np.nonzero(scenes.things[..., 0] >= 0)
    shape, colour, size, place = scenes.things[rows, slots].T.astype(np.intp)
    at = place * PER_PLACE
    out[rows, at] = CONTRAST[size]
    for axis in range(3):
        out[rows, at + 1 + axis] = STRENGTH[size] * COLOUR_AXES[colour, axis]
        out[rows, at + 4 + axis] = STRENGTH[size] * SHAPE_AXES[shape, axis]
    out[np.arange(len(scenes)), PER_PLACE * len(PLACES) + scenes.background] = 1.0
    return out


def nearest_scenes(estimate: NDArray[np.floating]) -> Scenes:
    """The scenes whose features lie nearest to estimates of f.

    At each place the best object (or none) is found by squared distance; the up to three places
    that gain most are kept, and at least one.

    Parameters
    ----------
    estimate : (B, 67) float
        Estimated features, for example the oracle's.
    """
    kinds = np.array(list(itertools.product(range(len(SHAPES)), range(len(COLOURS)), range(2))))
    shape, colour, size = kinds.T
    objects = np.concatenate(
        [
            CONTRAST[size][:, None],
            STRENGTH[size][:, None] * COLOUR_AXES[colour],
            STRENGTH[size][:, None] * SHAPE_AXES[shape],
        ],
        axis=1,
    )  # (96, 7)
    places = estimate[:, : PER_PLACE * len(PLACES)].reshape(len(estimate), len(PLACES), PER_PLACE)
    gain = 2 * places @ objects.T - (objects**2).sum(
        1
    )  # squared distance of none minus that of the object
    best, gain = gain.argmax(2), gain.max(2)
    order = np.argsort(-gain, axis=1)[:, :3]
    things = np.full((len(estimate), 3, 4), -1, np.int8)
    for i, top in enumerate(order):
        kept = sorted(p for rank, p in enumerate(top) if rank == 0 or gain[i, p] > 0)
        things[i, : len(kept)] = [(*kinds[best[i, p]], p) for p in kept]
    return Scenes(things, estimate[:, -len(BACKGROUNDS) :].argmax(1).astype(np.int8))
