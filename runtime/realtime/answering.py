"""Decoding beside acquisition: one thread, a short queue, a deadline for every answer.

Whoever closes a trial's window submits it and goes on at once. Answers that fall due together take
turns: every preview first, then every text, then the images; of each kind fast ones before refined
ones, and all of them before those that a resumed run has still to give. What could not begin before
its deadline is dropped, and that is told as the answer. Within a deadline the decoder itself
shortens what does not fit: preview, text, few steps, all steps.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ..decoder import Decoder
from ..errors import ScansideError
from ..events import Done, Event, Image, Pause, Preview, Token
from ..result import Result
from .confidence import Confidence
from .session_config import SessionConfig


class AnswerState(StrEnum):
    """What became of an answer."""

    ANSWERED = "answered"
    DROPPED = "dropped"
    """It could not begin before its deadline."""
    FAILED = "failed"
    """It could not be decoded."""
    IMPOSSIBLE = "impossible"
    """The trial's activity cannot be told from the volumes that came."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """An answer that is wanted."""

    attempt: int
    trial: int
    revision: int
    tokens: NDArray[np.float32]
    """(N, C) normalised."""
    signal: float
    """As `Confidence` takes it."""
    closed_s: float
    """Arrival of the last volume that it knows, on the clock of the session."""
    deadline_s: float | None
    """On that clock; None for one that a resumed run gives late."""
    notes: tuple[str, ...] = ()
    beta: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    """(E,) values and variance, to be kept; None if there are none."""


@dataclass(slots=True, kw_only=True, eq=False)
class Answer:
    """What became of a job."""

    job: Job
    state: AnswerState
    result: Result | None = None
    confidence: Confidence | None = None
    degraded: list[str] = field(default_factory=list[str])
    latency_s: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds from the arrival of the last volume to preview, first_token, image and total."""
    missed: bool = False
    """It was not there before its deadline."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Turn:
    """An answer as far as it has come."""

    answer: Answer
    place: int
    """In the order of submission."""
    events: Iterator[Event] | None = None
    """What is still to come; None before it has begun."""
    stage: int = 0

    def __lt__(self, other: _Turn) -> bool:
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[bool, int, int, int]:
        job = self.answer.job
        return job.deadline_s is None, self.stage, job.revision, self.place


class Answering:
    """The thread that decodes.

    Parameters
    ----------
    decoder : Decoder
        Used by this thread alone from now on.
    config : SessionConfig
    golden_clip : float, optional
        Length of a CLIP vector of a good volume.
    on_event : callable
        Gets job and event while an answer comes into being; on this thread.
    on_answer : callable
        Gets each answer once, dropped and failed ones included; on this thread.
    clock : callable
        Seconds; the session's.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: SessionConfig,
        golden_clip: float | None,
        on_event: Callable[[Job, Event], None],
        on_answer: Callable[[Answer], None],
        clock: Callable[[], float],
    ) -> None:
        self._decoder = decoder
        self._config = config
        self._golden_clip = golden_clip
        self._on_event = on_event
        self._on_answer = on_answer
        self._clock = clock
        self._waiting: list[_Turn] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._busy = self._closing = self._given_up = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue an answer; returns at once."""
        answer = Answer(job=job, state=AnswerState.ANSWERED)
        with self._changed:
            heapq.heappush(self._waiting, _Turn(answer=answer, place=next(self._order)))
            self._changed.notify_all()

    def wait(self, timeout_s: float, most: int = 0) -> bool:
        """Wait until no more than `most` answers are unfinished; False if that took too long."""
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._waiting) + self._busy <= most, timeout_s
            )

    def close(self, timeout_s: float) -> None:
        """Answer what waits, for at most `timeout_s`; then drop the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if not self.wait(timeout_s):
            self._given_up = True
            self._decoder.stop()
        self._thread.join()

    def abandon(self) -> None:
        """End at once, and tell nothing of what is unfinished: the run may be resumed."""
        self._abandoned = True
        self.close(0.0)

    def _run(self) -> None:
        while (turn := self._next()) is not None:
            try:
                over = self._go_on(turn)
            except ScansideError as exc:
                over = self._failed(turn, str(exc))
            except Exception as exc:  # whatever fails in one answer, the run goes on
                over = self._failed(turn, f"internal error ({type(exc).__name__}: {exc})")
            if over and not self._abandoned:
                self._on_answer(turn.answer)
            with self._changed:
                if not over:
                    heapq.heappush(self._waiting, turn)
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> _Turn | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            self._busy = True
            return heapq.heappop(self._waiting)

    def _go_on(self, turn: _Turn) -> bool:
        """Decode until the next pause or the end; whether the answer is over."""
        answer = turn.answer
        job = answer.job
        if turn.events is None:
            left_s = None if job.deadline_s is None else job.deadline_s - self._clock()
            if why := self._why_not(left_s):
                answer.state, answer.degraded, answer.missed = AnswerState.DROPPED, [why], True
                return True
            turn.events = self._stream(job, left_s)
        for event in turn.events:
            if isinstance(event, Pause):
                turn.stage += 1
                return False
            self._note(answer, event)
            self._on_event(job, event)
        return True

    def _stream(self, job: Job, left_s: float | None) -> Iterator[Event]:
        config = self._config
        return self._decoder.stream(
            job.tokens,
            config.tasks,
            seed=config.seed,
            deadline_s=left_s,
            steps=config.steps,
            prompt=config.prompt,
            pauses=True,
        )

    def _note(self, answer: Answer, event: Event) -> None:
        since_s = self._clock() - answer.job.closed_s
        if isinstance(event, Preview):
            answer.latency_s["preview"] = since_s
        elif isinstance(event, Token):
            answer.latency_s.setdefault("first_token", since_s)
        elif isinstance(event, Image):
            answer.latency_s["image"] = since_s
        elif isinstance(event, Done):
            answer.latency_s["total"] = since_s
            self._complete(answer, event.result)

    def _failed(self, turn: _Turn, why: str) -> bool:
        turn.answer = Answer(job=turn.answer.job, state=AnswerState.FAILED, degraded=[why])
        return True

    def _why_not(self, left_s: float | None) -> str:
        if self._given_up:
            return "answer: dropped, for the run is over"
        if left_s is not None and left_s <= 0:
            return f"answer: dropped, for it was {-left_s:.2f} s late before it could begin"
        return ""

    def _complete(self, answer: Answer, result: Result) -> None:
        job = answer.job
        answer.result = result
        answer.degraded = [*job.notes, *result.degraded]
        answer.missed = job.deadline_s is not None and self._clock() > job.deadline_s
        if answer.missed:
            answer.degraded.append("answer: later than its deadline")
        clip = None
        if self._golden_clip and result.clip_norm is not None:
            clip = min(1.0, result.clip_norm / self._golden_clip)
        text = [float(np.exp(mean)) for mean in result.log_prob.values()]
        answer.confidence = Confidence(
            signal=job.signal, clip=clip, text=float(np.mean(text)) if text else None
        )
