"""An answer that is being written, token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .log_probs import LogProbs
from .result import TokenScore
from .sampling import TokenChooser
from .text_stream import TextStream
from .trunk import Branch


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What ends an answer, besides the model's own end of a turn."""

    limit: int
    """Most tokens."""
    stop: tuple[str, ...] = ()
    """Strings that are no part of the answer."""
    deadline: float | None = None
    """On the scale of `time.perf_counter()`; the text then ends at a whole word."""


class Answer:
    """An answer; iterate once to receive its text piece by piece.

    Parameters
    ----------
    branch : Branch
        Where it is computed; another text that begins there ends this one.
    prompt : list of int
        Token ids from the end of the prefix to the beginning of the answer.
    chooser : TokenChooser
    ends : Ends
    continues : bool
        Go on from what the branch holds, as far as the prompt begins with it, instead of forking
        the trunk anew.
    """

    def __init__(
        self,
        branch: Branch,
        prompt: list[int],
        chooser: TokenChooser,
        ends: Ends,
        *,
        continues: bool = False,
    ) -> None:
        self._branch = branch
        self._model = branch.model
        self._prompt = prompt
        self._chooser = chooser
        self._ends = ends
        self._begin = branch.rewrite if continues else branch.begin
        self._stream = TextStream(ends.stop, whole_words=ends.deadline is not None)
        self.tokens: list[int] = []
        """Ids chosen so far, the end token included."""
        self._log_probs = LogProbs(self._model.vocabulary_size)
        self.finish = ""
        """Why it ended: end, stop (a stop string), length, context, or deadline."""
        self.first_token_s = float("nan")
        """Seconds from the beginning of the iteration to the first token's choice."""
        self.total_s = float("nan")
        """Seconds of the whole answer."""
        self._hurried = False

    def __iter__(self) -> Iterator[str]:
        began = time.perf_counter()
        if self._late():
            self.finish = "deadline"
        else:
            self._begin(self._prompt)
            yield from self._grow(began)
        rest = self._stream.cut() if self.finish == "deadline" else self._stream.finish()
        self.total_s = time.perf_counter() - began
        if rest:
            yield rest

    def _grow(self, began: float) -> Iterator[str]:
        branch, model = self._branch, self._model
        edition = branch.edition
        while True:
            token = self._choose()
            if len(self.tokens) == 1:
                self.first_token_s = time.perf_counter() - began
            ends = model.ends(token)
            text = self._stream.push(b"" if ends else model.piece(token))
            self.finish = "end" if ends else self._reason()
            if text:
                yield text
            if self.finish:
                return
            if branch.edition != edition:
                raise InputError("this answer cannot go on: another one has begun in its place")
            branch.append(token)

    def _choose(self) -> int:
        logits = self._branch.logits()
        likeliest = int(logits.argmax())
        token = self._chooser.choose(logits, likeliest)
        self.tokens.append(token)
        self._log_probs.add(logits, likeliest, token)
        return token

    def _reason(self) -> str:
        if self._stream.stopped:
            return "stop"
        if len(self.tokens) >= self._ends.limit:
            return "length"
        if not self._branch.room:
            return "context"
        return "deadline" if self._late() else ""

    def hurry(self) -> None:
        """End at the current token, as if the deadline had come."""
        self._hurried = True

    def _late(self) -> bool:
        if self._hurried:
            return True
        return self._ends.deadline is not None and time.perf_counter() >= self._ends.deadline

    def read(self) -> str:
        """The whole text, waiting for it."""
        for _ in self:
            pass
        return self.text

    @property
    def text(self) -> str:
        """The text so far: the pieces that were yielded, joined."""
        return self._stream.text

    @property
    def token_s(self) -> float:
        """Mean seconds of a token after the first."""
        return (self.total_s - self.first_token_s) / max(len(self.tokens) - 1, 1)

    @property
    def log_probs(self) -> list[float]:
        """Natural log-probability of each of `tokens`, whatever they were drawn from."""
        return self._log_probs.values

    @property
    def mean_log_prob(self) -> float | None:
        """Mean natural log-probability of the tokens, a measure of the model's confidence; None
        when a deadline came before the first.
        """
        return float(np.mean(self.log_probs)) if self.log_probs else None

    @property
    def scores(self) -> tuple[TokenScore, ...]:
        """Every token with its log-probability."""
        pieces = (self._model.piece(t).decode(errors="replace") for t in self.tokens)
        return tuple(map(TokenScore, pieces, self.log_probs))
