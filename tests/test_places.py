"""The read-out of cubes: what stands where, and a loss that falls to zero when it is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanside.export.reference.places import KINDS, PlaceReader, attributes
from scanside.export.reference.scenes import COLOURS, PLACES, SHAPES, SIZES, draw_scenes

PLACE_OF_CUBE = torch.tensor([4, 0, 8, 4, 2])


def test_attributes_are_those_of_the_named_scene():
    scenes = draw_scenes(20, np.random.default_rng(0))
    told = attributes(scenes)
    for i in range(20):
        named = {PLACES.index(t.place): t for t in scenes.named(i).things}
        for place in range(len(PLACES)):
            thing = named.get(place)
            if thing is None:
                assert told[i, place].tolist() == list(KINDS)
            else:
                wanted = SHAPES.index(thing.shape), COLOURS.index(thing.colour)
                assert told[i, place].tolist() == [*wanted, SIZES.index(thing.size)]


def test_the_loss_is_that_of_reading_each_cube_at_its_own_place():
    scenes = draw_scenes(7, np.random.default_rng(1))
    true = attributes(scenes)[:, PLACE_OF_CUBE]  # (B, N, 3)
    ends = np.cumsum([0, *(k + 1 for k in KINDS)])
    embeddings = torch.zeros(7, 2 + len(PLACE_OF_CUBE), ends[-1])
    for kind, start in enumerate(ends[:-1]):
        embeddings[:, 2:].scatter_(2, true[..., kind : kind + 1] + int(start), 1.0)
    reader = PlaceReader(PLACE_OF_CUBE, int(ends[-1]))
    with torch.no_grad():
        reader.read.weight.copy_(50 * torch.eye(int(ends[-1])))
        reader.read.bias.zero_()
        assert float(reader(embeddings, scenes)) == pytest.approx(0, abs=1e-6)
        assert float(reader(embeddings.roll(1, 0), scenes)) > 1
