"""Which words of a decoded caption are right: things are matched, then compared word by word.

A caption is a list of noun phrases, "a large red circle at the top left and a small blue square on
a grey background". Each phrase of the answer is held against the phrase of the truth that it shares
most with, so that a wrong place or another order does not make every word wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

_THING = re.compile(
    r"\ban? (?P<words>\w+(?: \w+)*?)(?: (?:at|in|on) the (?P<place>\w+(?: \w+)*?))?"
    r"(?=[,.;]| and |\s+on an? |\s*$)"
)

Verdict: TypeAlias = Literal["right", "wrong", ""]
Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the answer as it was written, with a verdict if it names something."""

    text: str
    verdict: Verdict = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A decoded caption against the truth."""

    pieces: tuple[Piece, ...]
    """The answer, in order; the texts joined give it back."""
    missed: tuple[str, ...]
    """Things of the truth that no phrase of the answer stands for."""
    objects: int
    """Objects in the truth, the background not counted."""
    named: int
    """Objects whose colour and shape, the last two words of their phrase, are in the answer."""


@dataclass(frozen=True, slots=True)
class _Thing:
    words: tuple[str, ...]
    place: str
    spans: tuple[Span, ...]
    """Where the words, then the place if there is one, stand in the caption."""

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.words, self.place) if self.place else self.words

    @property
    def is_background(self) -> bool:
        return self.words[-1] == "background"

    def shares(self, other: _Thing) -> int:
        """Twice the common words, plus one for the same place: words say what a thing is."""
        return 2 * len(set(self.words) & set(other.words)) + (self.place == other.place)


def compare(truth: str, answer: str) -> Comparison:
    """Mark what an answer names rightly and wrongly.

    Examples
    --------
    >>> found = compare("a red ring at the top", "a blue ring at the top")
    >>> [(piece.text, piece.verdict) for piece in found.pieces if piece.verdict]
    [('blue', 'wrong'), ('ring', 'right'), ('top', 'right')]
    """
    expected, given = _things(truth), _things(answer)
    partner = _match(expected, given)
    marks = [
        mark
        for i, thing in enumerate(given)
        for mark in _marks(thing, expected[partner[i]] if i in partner else None)
    ]
    objects = [thing for thing in expected if not thing.is_background]
    named = {thing.words[-2:] for thing in given}
    missed = [thing for j, thing in enumerate(expected) if j not in partner.values()]
    return Comparison(
        pieces=tuple(_pieces(answer, marks)),
        missed=tuple(" ".join(thing.words) for thing in missed),
        objects=len(objects),
        named=sum(thing.words[-2:] in named for thing in objects),
    )


def _things(caption: str) -> list[_Thing]:
    found: list[_Thing] = []
    for match in _THING.finditer(caption.lower()):
        start = match.start("words")
        words = list(re.finditer(r"\w+", match["words"]))
        spans = [(start + word.start(), start + word.end()) for word in words]
        if match["place"]:
            spans.append(match.span("place"))
        names = tuple(word[0] for word in words)
        found.append(_Thing(names, match["place"] or "", tuple(spans)))
    return found


def _match(expected: list[_Thing], given: list[_Thing]) -> dict[int, int]:
    """Pair each thing that was given with at most one that was expected, the most alike first."""
    scores = {
        (i, j): mine.shares(true) for i, mine in enumerate(given) for j, true in enumerate(expected)
    }
    partner: dict[int, int] = {}
    for i, j in sorted(scores, key=lambda pair: -scores[pair]):
        if scores[i, j] and i not in partner and j not in partner.values():
            partner[i] = j
    return partner


def _marks(given: _Thing, true: _Thing | None) -> Iterator[tuple[Span, Verdict]]:
    """Yield where each part of a thing stands, and whether its counterpart has it too."""
    words = true.words if true else ()
    places = (true.place,) if true else ()
    for n, (part, span) in enumerate(zip(given.parts, given.spans, strict=True)):
        known = words if n < len(given.words) else places
        if part != "background":
            yield span, "right" if part in known else "wrong"


def _pieces(answer: str, marks: list[tuple[Span, Verdict]]) -> Iterator[Piece]:
    """Cut the answer at its marks; stretches between them carry no verdict."""
    end = 0
    for (start, stop), verdict in marks:
        if start > end:
            yield Piece(answer[end:start])
        yield Piece(answer[start:stop], verdict)
        end = stop
    if end < len(answer):
        yield Piece(answer[end:])
