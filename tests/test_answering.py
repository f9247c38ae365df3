"""Decoding beside a run: answers that fall due together take turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scanside.runtime import Decoder, Event, Image, InputError, Pause, Preview, Token
from scanside.runtime.realtime.answering import Answer, Answering, AnswerState, Job
from scanside.runtime.realtime.session_config import SessionConfig


@pytest.fixture(scope="module")
def decoder(tiny_bundle: Path) -> Iterator[Decoder]:
    with Decoder.open(tiny_bundle, threads=1) as opened:
        yield opened


def brain(decoder: Decoder, seed: int) -> np.ndarray:
    """Tokens of a volume."""
    shape = decoder.stages.preprocessor.geometry.shape
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def job(decoder: Decoder, trial: int, revision: int, deadline_s: float | None) -> Job:
    return Job(
        attempt=0,
        trial=trial,
        revision=revision,
        tokens=brain(decoder, trial),
        signal=1.0,
        closed_s=time.perf_counter(),
        deadline_s=deadline_s,
    )


def test_every_preview_comes_before_every_text_and_texts_before_images(decoder: Decoder):
    """And each answer is what it is alone, though others were decoded in between."""
    told: list[tuple[str, int]] = []
    answers: list[Answer] = []
    began, submitted = threading.Event(), threading.Event()

    def on_event(one: Job, event: Event) -> None:
        began.set()
        submitted.wait(60.0)  # the first one does not run ahead
        kind = {Preview: "preview", Token: "text", Image: "image"}.get(type(event))
        if kind and (kind, one.trial) not in told:
            told.append((kind, one.trial))

    config = SessionConfig(tr_s=1.6, volumes=10, tasks=("preview", "caption", "image"), steps=1)
    answering = Answering(decoder, config, None, on_event, answers.append, time.perf_counter)
    far = time.perf_counter() + 1000.0
    for trial, revision, deadline_s in ((0, 1, far), (1, 1, far), (2, 0, far), (3, 0, None)):
        answering.submit(job(decoder, trial, revision, deadline_s))
        began.wait(60.0)
    submitted.set()
    answering.close(120.0)

    # 0 had begun; 2 is a fast answer; 3 is one that a resumed run gives late
    assert [trial for kind, trial in told if kind == "preview"] == [0, 2, 1, 3]
    live = [kind for kind, trial in told if trial != 3]
    assert live == ["preview"] * 3 + ["text"] * 3 + ["image"] * 3
    assert [kind for kind, trial in told[-3:]] == ["preview", "text", "image"]
    assert [answer.job.trial for answer in answers] == [2, 0, 1, 3]
    for answer in answers:
        alone = decoder.decode(answer.job.tokens, config.tasks, steps=1)
        assert answer.state is AnswerState.ANSWERED
        assert answer.result is not None
        assert answer.result.caption == alone.caption
        np.testing.assert_array_equal(answer.result.image, alone.image)
        np.testing.assert_array_equal(answer.result.preview, alone.preview)


def test_an_answer_that_fails_takes_no_other_with_it(decoder: Decoder):
    answers: list[Answer] = []
    config = SessionConfig(tr_s=1.6, volumes=10, tasks=("caption",))
    answering = Answering(
        decoder, config, None, lambda one, event: None, answers.append, time.perf_counter
    )
    wrong = job(decoder, 0, 0, None)
    wrong.tokens[0, 0] = np.nan
    answering.submit(wrong)
    answering.submit(job(decoder, 1, 0, None))
    answering.submit(job(decoder, 2, 0, time.perf_counter() - 1.0))
    answering.close(120.0)
    states = {answer.job.trial: answer.state for answer in answers}
    assert states == {
        0: AnswerState.FAILED,
        1: AnswerState.ANSWERED,
        2: AnswerState.DROPPED,
    }


def test_a_paused_stream_goes_on_after_another_volume(decoder: Decoder):
    streams: list[Iterator[Event]] = []
    for seed in (1, 2):
        streams.append(decoder.stream(brain(decoder, seed), ("preview", "caption"), pauses=True))
        assert isinstance(next(streams[-1]), Preview)
        assert next(streams[-1]) == Pause("text")
    texts = ["".join(e.text for e in events if isinstance(e, Token)) for events in streams]
    assert texts == [decoder.decode(brain(decoder, s), "caption").caption for s in (1, 2)]


def test_a_stream_that_is_not_at_a_pause_ends_when_a_paused_one_goes_on(decoder: Decoder):
    """They would share the language model's cache."""
    paused = decoder.stream(brain(decoder, 1), "caption", pauses=True)
    assert next(paused) == Pause("text")
    writing = decoder.stream(brain(decoder, 2), "caption")
    next(writing)
    next(paused)
    with pytest.raises(InputError, match="the decoder has gone on to another volume"):
        next(writing)


def test_a_stop_reaches_what_is_paused(decoder: Decoder):
    paused = decoder.stream(brain(decoder, 1), ("caption", "image"), prompt="none", pauses=True)
    assert next(paused) == Pause("text")
    decoder.stop()
    *_, done = paused
    assert "caption: left out, for a stop request came before its first word" in (
        done.result.degraded
    )
