"""Read-outs of the prefix: what stands where, and losses that fall to zero when it is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanside.export.reference.places import IN_ORDER, KINDS, OrderReader, PlaceReader, at_places
from scanside.export.reference.scenes import COLOURS, PLACES, SHAPES, SIZES, draw_scenes

PLACE_OF_CUBE = torch.tensor([4, 0, 8, 4, 2])


def test_attributes_are_those_of_the_named_scene():
    scenes = draw_scenes(20, np.random.default_rng(0))
    told = at_places(scenes)
    for i in range(20):
        named = {PLACES.index(t.place): (n, t) for n, t in enumerate(scenes.named(i).things)}
        for place in range(len(PLACES)):
            number, thing = named.get(place, (None, None))
            if thing is None:
                assert told[i, place].tolist() == list(KINDS)
            else:
                wanted = SHAPES.index(thing.shape), COLOURS.index(thing.colour)
                assert told[i, place].tolist() == [*wanted, SIZES.index(thing.size), number]


def test_the_loss_is_that_of_reading_each_cube_at_its_own_place():
    scenes = draw_scenes(7, np.random.default_rng(1))
    true = at_places(scenes)[:, PLACE_OF_CUBE]  # (B, N, 3)
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


def test_the_class_token_tells_every_object_in_reading_order():
    scenes = draw_scenes(7, np.random.default_rng(1))
    width = 3 * (sum(IN_ORDER) + len(IN_ORDER))
    embeddings = torch.zeros(7, 4, width)
    for i in range(7):
        things = list(scenes.named(i).things)
        for number in range(3):
            at = number * width // 3
            names = (SHAPES, COLOURS, SIZES, PLACES)
            for kind, (known, attribute) in enumerate(
                zip(names, ("shape", "colour", "size", "place"), strict=True)
            ):
                there = number < len(things)
                value = known.index(getattr(things[number], attribute)) if there else len(known)
                embeddings[i, 0, at + value] = 1.0
                at += IN_ORDER[kind] + 1
    reader = OrderReader(width)
    with torch.no_grad():
        reader.read.weight.copy_(50 * torch.eye(width))
        reader.read.bias.zero_()
        assert float(reader(embeddings, scenes)) == pytest.approx(0, abs=1e-6)
        assert float(reader(embeddings.roll(1, 0), scenes)) > 1
