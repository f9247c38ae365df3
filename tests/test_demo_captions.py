"""Which words of a caption are marked right or wrong."""

import doctest

import pytest

from scanside.runtime.demo import captions
from scanside.runtime.demo.captions import compare

TRUTH = (
    "a large red circle at the top left, a small blue square in the centre "
    "and a large white ring at the bottom on an olive background"
)


def marked(answer: str, verdict: str) -> list[str]:
    return [piece.text for piece in compare(TRUTH, answer).pieces if piece.verdict == verdict]


def test_a_perfect_answer_has_every_word_right():
    found = compare(TRUTH, TRUTH)
    assert (found.named, found.objects, found.missed) == (3, 3, ())
    assert marked(TRUTH, "wrong") == []
    assert marked(TRUTH, "right")[:4] == ["large", "red", "circle", "top left"]
    assert "olive" in marked(TRUTH, "right")


@pytest.mark.parametrize("answer", ["", "nothing", TRUTH, TRUTH.upper(), "a red, and a at the on"])
def test_the_pieces_joined_are_the_answer(answer: str):
    assert "".join(piece.text for piece in compare(TRUTH, answer).pieces) == answer


def test_another_order_is_no_mistake():
    answer = (
        "a small blue square in the centre, a large white ring at the bottom "
        "and a large red circle at the top left on an olive background"
    )
    assert marked(answer, "wrong") == []
    assert compare(TRUTH, answer).named == 3


def test_a_wrong_place_is_wrong_as_a_whole():
    answer = TRUTH.replace("top left", "left")
    assert marked(answer, "wrong") == ["left"]
    assert compare(TRUTH, answer).named == 3


def test_a_wrong_colour_is_not_named_but_matched():
    found = compare(TRUTH, TRUTH.replace("red", "green"))
    assert (found.named, found.missed) == (2, ())
    assert marked(TRUTH.replace("red", "green"), "wrong") == ["green"]


def test_a_thing_left_out_is_missed():
    found = compare(TRUTH, "a large red circle at the top left on an olive background")
    assert found.missed == ("small blue square", "large white ring")
    assert (found.named, found.objects) == (1, 3)


def test_an_invented_thing_is_wrong_in_every_word():
    answer = "a small cyan star at the right"
    found = compare("a large red ring at the top on a grey background", answer)
    assert [p.text for p in found.pieces if p.verdict == "wrong"] == [
        "small",
        "cyan",
        "star",
        "right",
    ]
    assert found.missed == ("large red ring", "grey background")


def test_documentation():
    assert doctest.testmod(captions).failed == 0
