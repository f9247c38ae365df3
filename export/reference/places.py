"""What stands at the place that each cube sees best, read from the cube's embedding while training.

The paper's loss (Eq. 2) teaches the class token alone; what the other tokens, the prefix of the
language model, hold of a scene is left to chance, and colours and shapes of several objects lie in
them mixed. So in training one linear read-out, the same for all cubes, must tell colour, shape and
size at the cube's place. It is thrown away in the end. The language model then finds what belongs
to one object side by side.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .scenes import COLOURS, PLACES, SHAPES, SIZES, Scenes

KINDS = (len(SHAPES), len(COLOURS), len(SIZES))
"""Attributes of an object and how many values each has; one more stands for no object."""


class PlaceReader(nn.Module):
    """The read-out.

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
        """Mean cross-entropy of an attribute.

        Parameters
        ----------
        prefix : (B, M, width) float
            The cubes' embeddings are its last N rows. They are read at unit size, as the language
            model's first layer does.
        scenes : Scenes
            What was seen, B of them.
        """
        cubes = prefix[:, -len(self._places) :]
        told = self.read(F.rms_norm(cubes, cubes.shape[-1:])).float().flatten(0, 1)
        true = attributes(scenes)[:, self._places].flatten(0, 1)  # (B N, 3)
        logits = told.split([count + 1 for count in KINDS], 1)
        losses = [F.cross_entropy(one, true[:, i]) for i, one in enumerate(logits)]
        return torch.stack(losses).mean()


def attributes(scenes: Scenes) -> Tensor:
    """Shape, colour and size at each place, (B, 9, 3) int64; one past the last where nothing is."""
    out = np.tile(np.array(KINDS), (len(scenes), len(PLACES), 1))
    rows, slots = np.nonzero(scenes.things[..., 0] >= 0)
    *kinds, place = scenes.things[rows, slots].T.astype(np.intp)
    out[rows, place] = np.stack(kinds, 1)
    return torch.from_numpy(out)
