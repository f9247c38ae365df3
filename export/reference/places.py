"""What stands where, read from the prefix while training.

The paper's loss (Eq. 2) teaches the class token alone; what the other tokens, the prefix of the
language model, hold of a scene is left to chance, and colours and shapes of several objects lie in
them mixed. So in training linear read-outs must tell what stands at a cube's place, from the cube's
embedding, and every object in reading order, from the class token's. They are thrown away in the
end. The language model then finds what belongs to one object side by side, and the next object of a
sentence without having to count.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .scenes import COLOURS, PLACES, SHAPES, SIZES, Scenes

OBJECTS = 3
"""Most objects of a scene."""
KINDS = (len(SHAPES), len(COLOURS), len(SIZES), OBJECTS)
"""How many values shape, colour and size of the object at a place have, and its number in reading
order; one more stands for no object.
"""
IN_ORDER = (len(SHAPES), len(COLOURS), len(SIZES), len(PLACES))
"""The same of an object that is known by its number."""


class PlaceReader(nn.Module):
    """The read-out, the same for all cubes.

    Parameters
    ----------
    places : (N,) int64
        The place that each cube sees best.
    width : int
        Of the prefix.
    """

    def __init__(self, places: Tensor, width: int) -> None:
        super().__init__()
        self._places = places
        self.read = nn.Linear(width, sum(KINDS) + len(KINDS))

    def forward(self, prefix: Tensor, scenes: Scenes) -> Tensor:
        """Cross-entropy of an object's four attributes, averaged over cubes.

        Parameters
        ----------
        prefix : (B, M, width) float
            The cubes' embeddings are its last N rows. They are read at unit size, as the language
            model's first layer does.
        scenes : Scenes
            What was seen, B of them.
        """
        cubes = prefix[:, -len(self._places) :]
        told = self.read(F.rms_norm(cubes, cubes.shape[-1:])).flatten(0, 1)
        true = at_places(scenes)[:, self._places].flatten(0, 1)  # (B N, 4)
        return _cross_entropy(told, true, KINDS)


class OrderReader(nn.Module):
    """The read-out of the class token.

    Parameters
    ----------
    width : int
        Of the prefix.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, OBJECTS * (sum(IN_ORDER) + len(IN_ORDER)))

    def forward(self, prefix: Tensor, scenes: Scenes) -> Tensor:
        """Cross-entropy of an object's four attributes, averaged over the three in reading order.

        Parameters
        ----------
        prefix : (B, M, width) float
            The class token's embedding is its first row, read at unit size.
        scenes : Scenes
            What was seen, B of them.
        """
        told = self.read(F.rms_norm(prefix[:, 0], prefix.shape[-1:])).view(
            len(prefix) * OBJECTS, -1
        )
        things = torch.from_numpy(scenes.things).long().flatten(0, 1)  # (B 3, 4)
        none = torch.tensor(IN_ORDER)
        return _cross_entropy(told, torch.where(things < 0, none, things), IN_ORDER)


def at_places(scenes: Scenes) -> Tensor:
    """Shape, colour, size and number of the object at each place, (B, 9, 4) int64; one past the
    last where nothing is.
    """
    out = np.tile(np.array(KINDS), (len(scenes), len(PLACES), 1))
    rows, slots = np.nonzero(scenes.things[..., 0] >= 0)
    *kinds, place = scenes.things[rows, slots].T.astype(np.intp)
    out[rows, place] = np.stack([*kinds, slots], 1)
    return torch.from_numpy(out)


def _cross_entropy(told: Tensor, true: Tensor, kinds: tuple[int, ...]) -> Tensor:
    """Summed over kinds of attributes, each with one more value for no object."""
    logits = told.float().split([count + 1 for count in kinds], 1)
    losses = [F.cross_entropy(one, true[:, i]) for i, one in enumerate(logits)]
    return torch.stack(losses).sum()
