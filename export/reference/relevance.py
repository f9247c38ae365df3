"""GradCAM relevance as something that can be learnt: of words that are true of a scene.

The same numbers as `Localizer` gives, for a whole batch with concepts of its own for each trial,
and with a gradient of their own, so that training can say what they should be.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..localizer import last_block
from ..vit3d import ViT3D
from .features import COLOUR_AXES, PER_PLACE, SHAPE_AXES
from .scenes import COLOURS, SHAPES, Scenes

ATTRIBUTES = COLOURS + SHAPES
CONCEPTS = ATTRIBUTES + tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""Every colour, every shape, every two of them."""
DIRECTIONS = torch.zeros(len(ATTRIBUTES), PER_PLACE)
"""(14, 7) each colour and each shape among a place's features."""
DIRECTIONS[: len(COLOURS), 1:4] = torch.from_numpy(COLOUR_AXES)
DIRECTIONS[len(COLOURS) :, 4:] = torch.from_numpy(SHAPE_AXES)
PARTS = torch.tensor([[float(a in c.split()) for a in ATTRIBUTES] for c in CONCEPTS])
"""(62, 14) which attributes a concept is made of."""


def concepts_of(scenes: Scenes, rng: np.random.Generator) -> Tensor:
    """A shape, a colour and an object of each scene, drawn each for itself: (B, 3) int64, indices
    of `CONCEPTS`.
    """
    out = np.empty((len(scenes), 3), np.int64)
    for i, things in enumerate(scenes.things.astype(int)):
        there: NDArray[np.intp] = things[things[:, 0] >= 0]
        of_shape, of_colour, both = there[rng.integers(len(there), size=3)]
        out[i] = (
            len(COLOURS) + of_shape[0],
            of_colour[1],
            len(ATTRIBUTES) + both[1] * len(SHAPES) + both[0],
        )
    return torch.from_numpy(out)


def relevance(
    encoder: ViT3D, cubes: Tensor, class_token: Tensor, mean: Tensor, units: Tensor
) -> Tensor:
    """Relevance (K, N) of the cubes of K trials, each to one concept.

    Parameters
    ----------
    encoder : ViT3D
    cubes : (K, N, D) float32
        Of the penultimate layer, as the last layer's attention reads them.
    class_token : (K, D) float32
        Of the penultimate layer.
    mean : (N, D) float32
        Cubes of the mean brain.
    units : (K, E) float32
        Text vectors of unit length.
    """
    score = (F.normalize(_clip(encoder, cubes, class_token), dim=1) * units).sum()
    (gradient,) = torch.autograd.grad(score, cubes, create_graph=True)
    return torch.einsum("kd,knd->kn", gradient.mean(1), cubes - mean)


def _clip(encoder: ViT3D, cubes: Tensor, class_token: Tensor) -> Tensor:
    """Decoded CLIP vectors (K, E): the last layer's class token alone, for no other is read."""
    block = last_block(encoder)
    first = block.norm1(class_token)
    h = torch.cat([first[:, None], cubes], 1)
    # the query goes to the cubes rather than every cube to a key: far fewer products
    query = block.q(first).unflatten(1, (block.heads, -1))
    keys, values = (p.weight.unflatten(0, (block.heads, -1)) for p in (block.k, block.v))
    asked = torch.einsum("khd,hdw->khw", query, keys)
    attention = (asked @ h.transpose(1, 2) * query.shape[2] ** -0.5).softmax(2)  # (K, heads, N+1)
    told = torch.einsum("khw,hdw->khd", attention @ h, values).flatten(1) + block.v.bias
    x = class_token + block.out(told)
    x = x + block.fc2(F.gelu(block.fc1(block.norm2(x))))
    return encoder.f_wc(encoder.norm(x))
