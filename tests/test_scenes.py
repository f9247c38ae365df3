"""Scenes, features and texts of the reference world."""

from __future__ import annotations

import numpy as np
import pytest

from scanside.export.reference.features import encode, nearest_scenes
from scanside.export.reference.scenes import draw_scenes, render
from scanside.export.reference.texts import (
    caption,
    conversation,
    description,
    named_objects,
    names_every_object,
    prompt,
    questions,
)


def _scenes(count: int = 300, held_out: bool = False):
    return draw_scenes(count, np.random.default_rng(0), held_out=held_out)


def test_the_same_seed_draws_the_same_scenes():
    np.testing.assert_array_equal(_scenes().things, _scenes().things)


def test_no_training_scene_is_held_out_and_no_held_out_scene_is_trained_on():
    assert not _scenes().held_out.any()
    assert _scenes(held_out=True).held_out.all()


def test_every_place_is_as_likely():
    places = _scenes(6000).things[..., 3]
    counts = np.bincount(places[places >= 0], minlength=9)
    assert counts.min() > 0.9 * counts.mean()


def test_objects_of_a_scene_share_neither_shape_nor_colour_nor_place():
    for row in _scenes().things:
        present = row[row[:, 0] >= 0]
        for column in (0, 1, 3):
            assert len(set(present[:, column])) == len(present)


def test_exact_features_give_back_the_scene():
    scenes = _scenes()
    found = nearest_scenes(encode(scenes).astype(float))
    np.testing.assert_array_equal(found.things, scenes.things)
    np.testing.assert_array_equal(found.background, scenes.background)


def test_a_picture_shows_each_object_in_its_own_cell_only():
    scenes = _scenes(50)
    images = render(scenes)
    for i, image in enumerate(images):
        busy = (np.abs(image - image[-1, -1]) > 0.02).any(2)[:63, :63]
        cells = busy.reshape(3, 21, 3, 21).any((1, 3)).ravel()
        places = scenes.things[i, :, 3]
        assert set(np.flatnonzero(cells)) == set(places[places >= 0].tolist())


@pytest.mark.parametrize("text", [caption, prompt, description])
def test_whole_scene_texts_name_every_object(text):
    scenes = _scenes(50)
    for i in range(50):
        scene = scenes.named(i)
        assert names_every_object(text(scene), scene)


def test_a_text_with_one_wrong_or_missing_object_is_not_right():
    scene = next(s for s in map(_scenes(50).named, range(50)) if len(s.things) == 2)
    one = f"a {scene.things[0]}"
    assert not names_every_object(one, scene)
    assert not names_every_object(f"{caption(scene)} and a red circle beside a blue ring", scene)
    assert named_objects("a red dog, a circle of red") == frozenset()
    wrong = caption(scene).replace(scene.things[0].colour, "no-such-colour")
    assert not names_every_object(wrong, scene)


def test_a_dialogue_asks_only_what_has_one_answer():
    rng = np.random.default_rng(1)
    scene = next(s for s in map(_scenes(50).named, range(50)) if len(s.things) == 3)
    kinds = {t.kind for d in questions(scene, rng) for t in d}
    assert kinds == {"attribute", "count", "dialogue", "relation", "reasoning", "locate"}
    turns = conversation(scene, rng, 7)
    assert len(turns) <= 8
    assert "caption" in {t.kind for t in turns}


def test_texts_say_an_before_a_vowel():
    scene = next(s for s in map(_scenes(50).named, range(50)) if s.background == "olive")
    assert "on an olive background" in caption(scene)
