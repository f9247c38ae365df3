"""One volume on its way through the stages, under one clock.

Answers come in the order of their speed: preview, text, image; one that a GPU makes beside a text
comes between its tokens. With a deadline, text ends early enough to leave time for a picture, the
picture takes as many steps as still fit, and a picture that does not fit at all is replaced by the
preview. Nothing of that is silent: each is a sentence in `Result.degraded`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from .clock import Clock, Costs
from .device_encoding import DeviceVolume
from .errors import InputError
from .events import Done, Event, Heatmap, Pause, Token
from .imaging import Imaging
from .language import Answer, LanguageModel
from .localization.asked import ask_concept, is_sentence
from .request import Request
from .result import AnsweredQuestion, Result
from .stages import Stages
from .volume import Volume

Floats = NDArray[np.float32]


class Decoding:
    """The work of one request.

    Parameters
    ----------
    take : callable
        Called with this decoding when it goes on after a pause: the models are its own again.

    Raises
    ------
    InputError
        The bundle has no stage for something that is asked for, or no table for that many steps.
    """

    def __init__(
        self,
        stages: Stages,
        request: Request,
        result: Result,
        clock: Clock,
        costs: Costs,
        take: Callable[[Decoding], None],
    ) -> None:
        self._stages = stages
        self._request = request
        self._result = result
        self._clock = clock
        self._costs = costs
        self._written: dict[str, str] = {}
        self._encoded: dict[str, Floats] = {}
        self._imaged = False
        """Whether the picture's turn has come."""
        self._about_image: list[str] = []
        self._ended_by = ""
        self._take = take
        self.paused = False
        """Whether nothing of it is in the models, so that another one may use them."""
        self.volume: Volume | None = None
        """What `request.locate` is located in; set before `events` where it is asked for."""
        if request.locate:
            stages.need_localizer().concepts.check(
                [text for text in request.locate if not self._is_sentence(text)]
            )
        if request.needs_language:
            language = stages.need_language()
            for question in request.ask:
                language.first_turn(question)  # refused now, not after the texts before it
        if request.needs_pictures and not stages.pictures:
            raise InputError(
                "this bundle has no diffusion model, so it makes no pictures; ask for text only"
            )
        self._stopped = threading.Event()
        self._imaging = None
        if stages.pictures:
            self._imaging = Imaging(stages.pictures, request, result, clock, costs, self._stopped)

    def stop(self) -> None:
        """Come to an end soon: after the current token, and after the current denoising step, or
        the picture that a GPU makes beside the text."""
        self._stopped.set()

    def end(self, why: str) -> None:
        """Refuse to go on: the models that this decoding runs on are taken or gone."""
        self._ended_by = why

    def events(self, tokens: Floats | DeviceVolume) -> Iterator[Event]:
        """Decode normalised tokens, (N, C) float32 or those that `Stages.place` made."""
        self._check_live()
        for event in self._events(tokens):
            yield event
            if not isinstance(event, Done):
                self._check_live()

    def _check_live(self) -> None:
        if self._ended_by:
            raise InputError(f"this stream cannot go on: {self._ended_by}")

    def _events(self, tokens: Floats | DeviceVolume) -> Iterator[Event]:
        imaging, language = self._imaging, self._stages.language
        if imaging:
            imaging.prepare()
        with self._clock.stage("encode"), self._costs.measured("encode"):
            encoded = self._encoded = self._stages.encode(tokens, self._wanted())
        self._result.clip_norm = float(np.linalg.norm(encoded["clip"]))
        if imaging and "preview" in self._request.tasks:
            yield imaging.preview(encoded["latent"])
        if self._request.locate:
            yield from self._places(encoded)
        if language and self._request.needs_language:
            yield from self._pause("text")
            yield from self._texts(language, encoded["prefix"][0])
        if imaging and "image" in self._request.tasks:
            yield from self._pause("image")
            yield from self._image(imaging)
        self._clock.mark("total")
        self._result.latency_ms = self._clock.latency_ms
        yield Done(self._result)

    def _image(self, imaging: Imaging) -> Iterator[Event]:
        if self._imaged:
            return
        self._imaged = True
        clip, latent = self._encoded["clip"], self._encoded["latent"]
        yield from imaging.events(clip, latent, self._prompt_text(), self._about_image)

    def _wanted(self) -> set[str]:
        """Which of the encoder's answers this request needs."""
        wanted = {"clip", "latent"}
        if self._request.needs_language or any(map(self._is_sentence, self._request.locate)):
            wanted.add("prefix")
        return wanted | ({"hidden"} if self._request.locate else set())

    def _pause(self, before: str) -> Iterator[Pause]:
        if self._request.pauses:
            self.paused = True
            yield Pause(before)
            self._take(self)
            self.paused = False

    def _places(self, encoded: dict[str, Floats]) -> Iterator[Heatmap]:
        assert self.volume is not None, "stream sets it"
        with self._clock.stage("locate"), self._costs.measured("locate"):
            found = self._stages.need_localizer().locate(
                self.volume, encoded["hidden"], self._named(encoded)
            )
        self._clock.mark("until_heatmap")
        self._result.locations += found
        yield from map(Heatmap, found)

    def _named(self, encoded: dict[str, Floats]) -> list[str]:
        """The concepts; a whole instruction goes to the language model first."""
        return [
            ask_concept(self._stages.need_language(), encoded["prefix"][0], text)
            if self._is_sentence(text)
            else text
            for text in self._request.locate
        ]

    def _is_sentence(self, text: str) -> bool:
        language = self._stages.language
        return language is not None and is_sentence(text, language.spec.instructions.get("locate"))

    def _texts(self, language: LanguageModel, prefix: Floats) -> Iterator[Event]:
        with self._clock.stage("language"), self._costs.measured("attend"):
            language.attend(prefix)
        for task in self._request.texts:
            asked = task in self._request.tasks
            if not asked and not self._leaves_time_for_image(task):
                self._about_image.append(
                    f"image: no text conditions it, for writing the {task} would be late"
                )
                continue
            answer = language.answer(
                language.instruction(task), task=task, deadline=self._text_deadline()
            )
            yield from self._answer(answer, task, task)
            self._written[task] = answer.text
            self._note_cut(task, answer, asked=asked)
            if asked:
                self._keep(task, answer.text)
        for number, question in enumerate(self._request.ask):
            answer = language.answer(question, deadline=self._text_deadline())
            yield from self._answer(answer, "ask", f"ask_{number}", question)
            self._note_cut(f"ask_{number}", answer, asked=True)
            self._result.answers.append(AnsweredQuestion(question, answer.text))
        self._clock.mark("until_text")

    def _answer(
        self, answer: Answer, task: str, name: str, question: str | None = None
    ) -> Iterator[Event]:
        for text in answer:
            yield Token(task, text, question)
            if self._stopped.is_set():
                answer.hurry()
            yield from self._image_meanwhile()
        self._clock.add("language", answer.total_s)
        sure = answer.mean_log_prob
        if sure is None:
            return
        if "language_first_token" not in self._clock.latency_ms:
            before = self._clock.latency_ms["language"] / 1e3 - answer.total_s
            self._clock.add("language_first_token", before + answer.first_token_s)
        if not (self._imaging and self._imaging.begun):
            self._learn(answer, task)
        self._result.log_prob[name] = sure
        if self._request.token_log_probs:
            self._result.token_log_probs[name] = answer.scores

    def _learn(self, answer: Answer, task: str) -> None:
        """What such a text costs where nothing else runs beside it."""
        self._costs.learn("token", answer.token_s)
        if answer.finish != "deadline" or answer.total_s > self._costs.of(f"text {task}"):
            self._costs.learn(f"text {task}", answer.total_s)  # a text that was cut costs more

    def _image_meanwhile(self) -> Iterator[Event]:
        """The picture, where a GPU has made it beside the texts."""
        self._begin_image()
        if self._imaging and self._imaging.is_ready:
            yield from self._image(self._imaging)

    def _begin_image(self) -> None:
        """Have a GPU make the picture beside the rest of the texts, once its own text is there:
        not before a text's first token, which would wait for it."""
        source = {"written": "prompt"}.get(self._request.prompt, self._request.prompt)
        waits = source in ("prompt", "caption") and source not in self._written
        if self._imaging is None or waits or self._request.pauses or self._stopped.is_set():
            return
        encoded = self._encoded
        self._imaging.begin(encoded["clip"], encoded["latent"], self._prompt_text())

    def _note_cut(self, name: str, answer: Answer, *, asked: bool) -> None:
        """Say that the deadline cut a text; one that only the image needs matters only to it."""
        if answer.finish != "deadline":
            return
        words, by = len(answer.text.split()), self._what_cuts()
        if asked and words:
            plural = "" if words == 1 else "s"
            self._degrade(f"{name}: cut after {words} word{plural} by {by}")
        elif asked:
            self._degrade(f"{name}: left out, for {by} came before its first word")
        elif words:
            self._about_image.append(f"image: {by} cut the {name} that conditions it")
        else:
            self._about_image.append(f"image: no text conditions it, for the {name} would be late")

    def _what_cuts(self) -> str:
        return "a stop request" if self._stopped.is_set() else "the deadline"

    def _keep(self, task: str, text: str) -> None:
        field = {"caption": "caption", "describe": "description", "prompt": "prompt"}[task]
        setattr(self._result, field, text)

    def _prompt_text(self) -> str:
        """The text that conditions the image; "" for none."""
        source = self._request.prompt
        if source in ("written", "caption"):
            return self._written.get("prompt" if source == "written" else "caption", "")
        return self._request.given_prompt

    def _text_deadline(self) -> float | None:
        """When the last token must be chosen, so that the least picture still fits."""
        if self._stopped.is_set():
            return time.perf_counter()
        at = self._clock.deadline_at
        if at is None:
            return None
        at -= self._costs.of("token")
        if self._imaging and "image" in self._request.tasks:
            at -= self._imaging.least_s
        return at

    def _leaves_time_for_image(self, task: str) -> bool:
        """Whether a text that only the image needs leaves time for the least picture."""
        if self._imaging is None:
            return True
        return self._clock.left_s >= self._costs.of(f"text {task}") + self._imaging.least_s

    def _degrade(self, sentence: str) -> None:
        self._result.degraded.append(sentence)
