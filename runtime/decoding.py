"""One volume on its way through the stages, under one clock.

Answers come in the order of their speed: preview, text, image. With a deadline, text ends early
enough to leave time for a picture, the picture takes as many steps as still fit, and a picture that
does not fit at all is replaced by the preview. Nothing of that is silent: each is a sentence in
`Result.degraded`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .clock import Clock, Costs
from .errors import InputError
from .events import Done, Event, Image, Preview, Token
from .language import Answer, LanguageModel
from .reconstruction import Condition, to_pixels
from .request import Request
from .result import AnsweredQuestion, Result
from .stages import Pictures, Stages

Floats = NDArray[np.float32]


class Decoding:
    """The work of one request.

    Raises
    ------
    InputError
        The bundle has no stage for something that is asked for, or no table for that many steps.
    """

    def __init__(
        self, stages: Stages, request: Request, result: Result, clock: Clock, costs: Costs
    ) -> None:
        self._stages = stages
        self._request = request
        self._result = result
        self._clock = clock
        self._costs = costs
        self._written: dict[str, str] = {}
        self._about_image: list[str] = []
        self._ended_by = ""
        if request.needs_language:
            language = stages.need_language()
            for question in request.ask:
                language.first_turn(question)  # refused now, not after the texts before it
        if request.needs_pictures and not stages.pictures:
            raise InputError(
                "this bundle has no diffusion model, so it makes no pictures; ask for text only"
            )
        self._steps = 0
        if stages.pictures:
            self._steps = stages.pictures.reconstruction.check_steps(request.steps)

    def end(self, why: str) -> None:
        """Refuse to go on: the models that this decoding runs on are taken or gone."""
        self._ended_by = why

    def events(self, tokens: Floats) -> Iterator[Event]:
        """Decode normalised tokens, (N, C) float32."""
        self._check_live()
        for event in self._events(tokens):
            yield event
            if not isinstance(event, Done):
                self._check_live()

    def _check_live(self) -> None:
        if self._ended_by:
            raise InputError(f"this stream cannot go on: {self._ended_by}")

    def _events(self, tokens: Floats) -> Iterator[Event]:
        with self._clock.stage("encode"), self._costs.measured("encode"):
            encoded = self._stages.encode(tokens)
        pictures, language = self._stages.pictures, self._stages.language
        if pictures and "preview" in self._request.tasks:
            yield self._preview(pictures, encoded["latent"])
        if language and self._request.needs_language:
            yield from self._texts(language, encoded["prefix"][0])
        if pictures and "image" in self._request.tasks:
            yield from self._image(pictures, encoded["clip"], encoded["latent"])
        self._clock.mark("total")
        self._result.latency_ms = self._clock.latency_ms
        yield Done(self._result)

    def _preview(self, pictures: Pictures, latent: Floats) -> Preview:
        with self._clock.stage("preview"), self._costs.measured("vae"):
            pixels = to_pixels(pictures.reconstruction.decode(latent))
        self._result.preview = pixels
        self._clock.mark("until_preview")
        return Preview(pixels)

    def _texts(self, language: LanguageModel, prefix: Floats) -> Iterator[Token]:
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
    ) -> Iterator[Token]:
        for text in answer:
            yield Token(task, text, question)
        self._clock.add("language", answer.total_s)
        if answer.mean_log_prob is None:
            return
        if "language_first_token" not in self._clock.latency_ms:
            before = self._clock.latency_ms["language"] / 1e3 - answer.total_s
            self._clock.add("language_first_token", before + answer.first_token_s)
        self._costs.learn("token", answer.token_s)
        self._costs.learn(f"text {task}", answer.total_s)
        self._result.log_prob[name] = answer.mean_log_prob
        if self._request.token_log_probs:
            self._result.token_log_probs[name] = answer.scores

    def _note_cut(self, name: str, answer: Answer, *, asked: bool) -> None:
        """Say that the deadline cut a text; one that only the image needs matters only to it."""
        if answer.finish != "deadline":
            return
        words = len(answer.text.split())
        if asked and words:
            plural = "" if words == 1 else "s"
            self._degrade(f"{name}: cut after {words} word{plural} by the deadline")
        elif asked:
            self._degrade(f"{name}: left out, for the deadline came before its first word")
        elif words:
            self._about_image.append(f"image: the deadline cut the {name} that conditions it")
        else:
            self._about_image.append(f"image: no text conditions it, for the {name} would be late")

    def _keep(self, task: str, text: str) -> None:
        field = {"caption": "caption", "describe": "description", "prompt": "prompt"}[task]
        setattr(self._result, field, text)

    def _image(self, pictures: Pictures, clip: Floats, latent: Floats) -> Iterator[Event]:
        steps = self._steps_that_fit(pictures)
        if steps == 0:
            self._degrade(
                "image: left out, for not even the fewest steps fit; the preview stands in"
            )
            if self._result.preview is None:
                yield self._preview(pictures, latent)
            return
        if steps < self._steps:
            self._degrade(f"image: {steps} of {self._steps} steps, for the deadline leaves no more")
        for sentence in self._about_image:
            self._degrade(sentence)
        with self._clock.stage("diffusion"):
            clean = self._denoised(pictures, clip, latent, steps)
        with self._clock.stage("vae"), self._costs.measured("vae"):
            pixels = to_pixels(pictures.reconstruction.decode(clean))
        self._result.image, self._result.steps = pixels, steps
        self._clock.mark("until_image")
        yield Image(pixels, steps)

    def _denoised(self, pictures: Pictures, clip: Floats, latent: Floats, steps: int) -> Floats:
        text = self._prompt_text()
        states = pictures.prompt.empty
        if text:
            with self._costs.measured("states"):
                states, cut = pictures.prompt.encode(text)
            if cut:
                self._degrade(f"prompt: its last {cut} tokens do not fit the text encoder")
        condition = Condition(clip=clip, latent=latent, states=states)
        with self._costs.measured("step", per=steps):
            return pictures.reconstruction.denoise(condition, steps=steps, seed=self._request.seed)

    def _prompt_text(self) -> str:
        """The text that conditions the image; "" for none."""
        source = self._request.prompt
        if source == "none":
            return ""
        if source in ("written", "caption"):
            text = self._written.get("prompt" if source == "written" else "caption", "")
        else:
            text = source
        self._result.image_prompt = text or None
        return text

    def _image_cost(self, pictures: Pictures, steps: int) -> float:
        return self._costs.of("states") + steps * self._costs.of("step") + self._costs.of("vae")

    def _text_deadline(self) -> float | None:
        """When the last token must be chosen, so that the least picture still fits."""
        at, pictures = self._clock.deadline_at, self._stages.pictures
        if at is None:
            return None
        at -= self._costs.of("token")
        if pictures and "image" in self._request.tasks:
            at -= self._image_cost(pictures, pictures.reconstruction.fewest_steps)
        return at

    def _leaves_time_for_image(self, task: str) -> bool:
        """Whether a text that only the image needs leaves time for the least picture."""
        pictures = self._stages.pictures
        if pictures is None:
            return True
        least = self._image_cost(pictures, pictures.reconstruction.fewest_steps)
        return self._clock.left_s >= self._costs.of(f"text {task}") + least

    def _steps_that_fit(self, pictures: Pictures) -> int:
        left = self._clock.left_s - self._image_cost(pictures, 0)
        if left <= 0:
            return 0
        step = self._costs.of("step")
        most = left / step if step > 0 else self._steps
        return pictures.reconstruction.steps_within(min(most, self._steps))

    def _degrade(self, sentence: str) -> None:
        self._result.degraded.append(sentence)
