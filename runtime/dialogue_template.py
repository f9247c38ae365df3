"""A dialogue as token ids: the template's pieces are trusted, a question is not.

A special token that stands in a question is plain text there, and a question that writes the words
with which the template begins a turn is refused: nobody can forge a turn. Otherwise a question and
the words around it are tokenised together, as they were in training, so that ordinary text has the
ids that the model knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .errors import BundleError, InputError
from .llama import LlamaModel
from .manifest import TemplateSpec

QUESTION, ANSWER = "{instruction}", "{answer}"
_NEVER = "(?!)"


class DialogueTemplate:
    """The bundle's template over the vocabulary of its language model.

    Parameters
    ----------
    spec : TemplateSpec
    model : LlamaModel
        Its vocabulary.

    Raises
    ------
    BundleError
        A slot that is missing, a special token that the vocabulary lacks, or one that the template
        does not declare.
    """

    def __init__(self, spec: TemplateSpec, model: LlamaModel) -> None:
        self._model = model
        self._specials = {text: self._special(text) for text in spec.specials}
        self._cut = re.compile(f"({'|'.join(map(re.escape, spec.specials)) or _NEVER})")
        self._first = _halves(spec.after_prefix + spec.first_turn, QUESTION, "first_turn")
        self._next = _halves(spec.next_turn, QUESTION, "next_turn")
        self._answer = _halves(spec.answer, ANSWER, "answer")
        for piece in (spec.before_prefix, *self._first, *self._next, *self._answer):
            self._check_declared(piece)
        halves = {half.strip() for half in (*self._first, *self._next)} - {""}
        self._marks = sorted(half for half in halves if not self._cut.search(half))
        if spec.bos and model.begin < 0:
            raise BundleError(f"{model.path} has no token that begins a text, {_WANTED}")
        if model.end < 0:
            raise BundleError(f"{model.path} has no token that ends a turn, {_WANTED}")
        self.head = [*([model.begin] if spec.bos else []), *self._ids(spec.before_prefix)]
        """Token ids before the prefix."""

    def first_turn(self, question: str) -> list[int]:
        """Token ids from the end of the prefix to the beginning of the answer.

        Raises
        ------
        InputError
            An empty question, or one that would begin a turn of its own.
        """
        return self._turn(self._first, question)

    def next_turn(self, question: str) -> list[int]:
        """Token ids from the end of an answer to the beginning of the next; see `first_turn`."""
        return self._turn(self._next, question)

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer that was cut: what was shown of it, and the end of the turn."""
        before, after = self._answer
        return [*self._ids(before, text, after), self._model.end]

    def _turn(self, halves: tuple[str, str], question: str) -> list[int]:
        if not question.strip():
            raise InputError("the question is empty")
        for mark in self._marks:
            if mark in question:
                raise InputError(
                    f"the question holds {mark!r}, with which this bundle's dialogue begins a "
                    "turn; leave it out"
                )
        before, after = halves
        return self._ids(before, question, after)

    def _ids(self, before: str, untrusted: str = "", after: str = "") -> list[int]:
        ids: list[int] = []
        plain = ""
        for special, text in (*self._spans(before), (None, untrusted), *self._spans(after)):
            if special is not None:
                ids += [*self._plain(plain), special]
                plain = ""
            plain += text
        return ids + self._plain(plain)

    def _spans(self, piece: str) -> Iterator[tuple[int | None, str]]:
        """The text before the first special token, then each of them with the text behind it."""
        parts = self._cut.split(piece)
        yield None, parts[0]
        for special, text in zip(parts[1::2], parts[2::2], strict=True):
            yield self._specials[special], text

    def _plain(self, text: str) -> list[int]:
        return self._model.tokenize(text, special=False)

    def _special(self, text: str) -> int:
        ids = self._model.tokenize(text)
        if len(ids) != 1 or not self._model.is_control(ids[0]):
            raise BundleError(f"{self._model.path} has no special token {text!r}, {_WANTED}")
        return ids[0]

    def _check_declared(self, piece: str) -> None:
        """A special token that the template does not list would silently become plain text."""
        for _, text in self._spans(piece):
            if any(map(self._model.is_control, self._model.tokenize(text))):
                raise BundleError(
                    f"the dialogue template holds a special token in {text!r} that its 'specials' "
                    "do not list; add it there and export the bundle again"
                )


_WANTED = (
    "but the dialogue template needs one; export with the template that the model was trained on"
)


def _halves(piece: str, slot: str, name: str) -> tuple[str, str]:
    before, found, after = piece.partition(slot)
    if not found or slot in after:
        raise BundleError(
            f"the dialogue template's {name} must hold {slot} once; got {piece!r}; "
            "export the bundle again"
        )
    return before, after
