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


@pytest.mark.parametrize("seed", range(20))
def test_a_text_can_be_cut_behind_any_word_that_was_shown(seed: int):
    text = "A red-hot ring, Anna's, left of 蓝色圆 and हिन्दी cubes"
    raw, rng = text.encode(), random.Random(seed)
    end = rng.randrange(1, len(raw))
    cuts = sorted(rng.sample(range(1, end + 1), rng.randint(0, min(end, 12))))
    stream = TextStream(whole_words=True)
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, end], strict=True)]
    shown = "".join([*map(stream.push, pieces), stream.cut()])
    assert shown == stream.text
    assert text.startswith(shown)
    words = {"A", "red-hot", "ring", "ring,", "Anna's", "Anna's,", "left", "of", "and", "हिन्दी"}
    assert not shown or shown.split()[-1] in words or shown[-1] in "蓝色圆"


def test_a_cut_drops_only_the_word_that_might_have_gone_on():
    stream = TextStream(whole_words=True)
    assert [stream.push(p) for p in (b"a blue", b" tri", b"angle")] == ["a", " blue", ""]
    assert stream.cut() == ""
    assert stream.text == "a blue"


def test_a_text_that_ends_by_itself_keeps_its_last_word():
    stream = TextStream(whole_words=True)
    assert [stream.push(b"a blue"), stream.finish()] == ["a", " blue"]


def test_a_cut_shows_no_half_character():
    stream = TextStream(whole_words=True)
    assert [stream.push("圆".encode()), stream.push("形".encode()[:2]), stream.cut()] == [
        "圆",
        "",
        "",
    ]
