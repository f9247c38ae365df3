"""A conversation about one volume, whose prefix is computed once for all of it.

with decoder.chat("trial.nii.gz") as chat:
    print(chat.ask("What is left of the square?"))
    print(chat.ask("What colour is it?"))
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from .answer import Answer
from .errors import InputError
from .events import Token
from .generation import Generation
from .language import GREEDY, LanguageModel
from .reply import Reply
from .result import AnsweredQuestion

_TALK, _ASIDE = 0, 1


@dataclass(frozen=True, slots=True)
class _Turn:
    said: AnsweredQuestion
    answered: list[int]
    """Token ids of the answer and of the end of the turn."""


class Chat:
    """A conversation; made by `Decoder.chat`, closed with `close` or a `with` statement.

    Each turn goes on from the last one, which is not computed again. When the context is full the
    oldest turns are forgotten, at once so many that half of the room is free; the prefix never is.
    A chat is not shared between threads.

    Parameters
    ----------
    language : LanguageModel
    prefix : (M, d) float32
        The encoder's, for one volume.
    """

    def __init__(self, language: LanguageModel, prefix: NDArray[np.float32]) -> None:
        self._language = language
        self._trunk = language.open_trunk(branches=2)
        self._turns: list[_Turn] = []
        self._running: Answer | None = None
        self._closed = False
        self.latency_ms: dict[str, float] = {}
        """What the beginning of the chat took: load, preprocess, encode, language, total."""
        try:
            self._trunk.attend(prefix)
        except BaseException:
            self.close()
            raise

    @property
    def turns(self) -> tuple[AnsweredQuestion, ...]:
        """What was said and is still remembered."""
        return tuple(turn.said for turn in self._turns)

    def ask(self, question: str, generation: Generation = GREEDY) -> Reply:
        """Ask about the volume, knowing what was said before.

        Parameters
        ----------
        question : str
        generation : Generation
            Limit, stop strings, deadline, sampling, schema or grammar.

        Returns
        -------
        reply : Reply

        Raises
        ------
        InputError
            An empty question, one that forges a turn, or one longer than the context.
        """
        return _last(self.stream(question, generation))

    def stream(self, question: str, generation: Generation = GREEDY) -> Iterator[Token | Reply]:
        """Ask, and receive the answer as it is written, then the whole reply.

        A turn that is not received to its end is not remembered. Parameters and errors are those
        of `ask`; a wrong question is refused at the call.
        """
        deadline = self._deadline(generation)
        chooser = self._language.chooser(generation)
        ends = self._language.ends("ask", generation, deadline=deadline)
        self._language.first_turn(question)  # refused here if even alone it does not fit
        dropped = self._turns_to_drop(question, ends.limit)
        prompt = self._conversation(self._turns[dropped:], question)
        branch = self._trunk.branches[_TALK]
        answer = Answer(branch, prompt, chooser, ends, continues=True)
        self._running = answer
        return self._told(answer, question, dropped)

    def write(
        self, task: str, generation: Generation = GREEDY, *, concept: str | None = None
    ) -> Reply:
        """Write a text about the volume, apart from the conversation.

        Parameters
        ----------
        task : str
            Of caption, describe, prompt, locate.
        generation : Generation
        concept : str, optional
            What to locate, for "locate" alone.

        Returns
        -------
        reply : Reply
        """
        return _last(self.stream_task(task, generation, concept=concept))

    def stream_task(
        self, task: str, generation: Generation = GREEDY, *, concept: str | None = None
    ) -> Iterator[Token | Reply]:
        """What `write` gives, as it is written."""
        deadline = self._deadline(generation)
        instruction = self._language.instruction(task, concept)
        branch, prompt = self._trunk.branches[_ASIDE], self._language.first_turn(instruction)
        ends = self._language.ends(task, generation, deadline=deadline)
        answer = Answer(branch, prompt, self._language.chooser(generation), ends)
        return self._written(answer, task, instruction)

    def forget(self) -> None:
        """Begin a new conversation about the same volume."""
        self._turns.clear()
        self._running = None

    def close(self) -> None:
        """Free the conversation's memory; may be called twice."""
        self._closed = True
        self._trunk.cache.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _deadline(self, generation: Generation) -> float | None:
        if self._closed:
            raise InputError("the chat is closed; begin another one")
        seconds = generation.deadline_s
        return None if seconds is None else time.perf_counter() + seconds

    def _conversation(self, turns: Sequence[_Turn], question: str) -> list[int]:
        """Token ids of turns and a question behind them."""
        template = self._language.template
        ids: list[int] = []
        for turn in turns:
            asked = template.next_turn if ids else template.first_turn
            ids += [*asked(turn.said.question), *turn.answered]
        return ids + (template.next_turn if ids else template.first_turn)(question)

    def _turns_to_drop(self, question: str, limit: int) -> int:
        """How many of the oldest turns go, so that question and answer fit."""
        most = self._trunk.branches[_TALK].most
        room = most - min(limit, most // 2)
        needed = len(self._conversation(self._turns, question))
        if needed <= room:
            return 0
        # What stays has to be computed again, so more goes than must: not every turn pays for it.
        dropped = 0
        while dropped < len(self._turns) and needed > room // 2:
            dropped += 1
            needed = len(self._conversation(self._turns[dropped:], question))
        return dropped

    def _written(self, answer: Answer, task: str, question: str) -> Iterator[Token | Reply]:
        yield from _tokens(answer, task, question)
        yield _reply(answer, question)

    def _told(self, answer: Answer, question: str, dropped: int) -> Iterator[Token | Reply]:
        if self._running is not answer:
            raise InputError("this answer cannot begin: another one has, in its place")
        forgotten = tuple(turn.said for turn in self._turns[:dropped])
        yield from _tokens(answer, "ask", question)
        if self._running is answer and (answer.text or answer.finish != "deadline"):
            said = AnsweredQuestion(question, answer.text)
            answered = answer.tokens
            if answer.finish != "end":
                answered = self._language.template.answer(answer.text)
            self._turns = [*self._turns[dropped:], _Turn(said, answered)]
            self._running = None
        yield _reply(answer, question, forgotten)


def _tokens(answer: Answer, task: str, question: str) -> Iterator[Token]:
    for text in answer:
        yield Token(task, text, question)


def _reply(answer: Answer, question: str, forgotten: tuple[AnsweredQuestion, ...] = ()) -> Reply:
    seconds = {"first_token": answer.first_token_s, "total": answer.total_s}
    return Reply(
        question=question,
        text=answer.text,
        finish=answer.finish,
        log_prob=answer.mean_log_prob,
        tokens=answer.scores,
        forgotten=forgotten,
        latency_ms={name: 1e3 * s for name, s in seconds.items() if s == s},
    )


def _last(events: Iterator[Token | Reply]) -> Reply:
    *_, reply = events
    assert isinstance(reply, Reply)
    return reply
