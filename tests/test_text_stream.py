"""Text that grows token by token."""

import random

import pytest

from scanside.runtime.text_stream import TextStream


def shown(pieces: list[bytes], stop: list[str]) -> tuple[list[str], TextStream]:
    stream = TextStream(stop)
    texts = [stream.push(piece) for piece in pieces]
    return [*texts, stream.finish()], stream


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_of_the_bytes_gives_the_same_text_in_whole_characters(seed: int):
    text = "Zwei Kreise – ein roter ● und ein 蓝色 🧠 cube"
    raw, rng = text.encode(), random.Random(seed)
    cuts = sorted(rng.sample(range(1, len(raw)), rng.randint(0, 30)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    texts, stream = shown(pieces, [])
    assert "".join(texts) == stream.text == text
    assert all("\ufffd" not in part for part in texts)


def test_outer_space_is_never_shown():
    texts, _ = shown([b" ", b" a", b" ", b"b ", b"  "], [])
    assert texts == ["", "a", "", " b", "", ""]


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_string_and_what_follows_are_never_shown(seed: int):
    raw, rng = b"a red < circle <human>: more", random.Random(seed)
    cuts = sorted(rng.sample(range(1, len(raw)), rng.randint(0, 15)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    texts, stream = shown(pieces, ["<human>", "</s>"])
    assert "".join(texts) == stream.text == "a red < circle"
    assert stream.stopped


def test_the_beginning_of_a_stop_string_is_shown_once_it_is_none():
    texts, stream = shown([b"a <hu", b"t>"], ["<human>"])
    assert texts == ["a", " <hut>", ""]
    assert not stream.stopped


def test_half_a_character_at_the_end_is_marked():
    texts, _ = shown([b"a", b"\xc3"], [])
    assert texts == ["a", "", "\ufffd"]
