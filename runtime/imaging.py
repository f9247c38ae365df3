"""The picture of one request: planned, denoised, shown on the way, stopped, ranked.

The number of steps comes from costs that were measured at warm-up and since. While it runs the plan
is held against the clock, and a picture that would be late ends with its latest guess. Whatever
happens there is a picture: where none can be denoised, the preview stands in.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Event as Flag

import numpy as np
from numpy.typing import NDArray

from .clock import Clock, Costs
from .denoising import Begun, Condition, Step, Whole
from .errors import InputError, ScansideError
from .events import Event, Image, Intermediate, Preview
from .pictures import Pictures
from .reconstruction import to_pixels
from .request import Request
from .result import Candidate, Result

Floats = NDArray[np.float32]
States = tuple[Floats, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A candidate: its picture, the step it was left at, and how well it fits."""

    step: Step
    pixels: NDArray[np.uint8] | None = None
    """(H, W, 3)"""
    image: Floats | None = None
    """(1, 3, H, W) instead of pixels, where candidates are compared."""
    similarity: float = 0.0

    def shown(self) -> NDArray[np.uint8]:
        """Its pixels."""
        if self.pixels is not None:
            return self.pixels
        assert self.image is not None, "one of the two"
        return to_pixels(self.image)


class Imaging:
    """The pictures of one request.

    Parameters
    ----------
    stopped : Flag
        Set when a caller wants the answer now.

    Raises
    ------
    InputError
        The bundle has no table for that many steps, or nothing that ranks candidates.
    """

    def __init__(
        self,
        pictures: Pictures,
        request: Request,
        result: Result,
        clock: Clock,
        costs: Costs,
        stopped: Flag,
    ) -> None:
        self._pictures = pictures
        self._picture = pictures.reconstruction
        self._request = request
        self._result = result
        self._clock = clock
        self._costs = costs
        self._stopped = stopped
        self._states: Future[States] | None = None
        self._begun: tuple[Condition, Begun] | None = None
        """What is made beside the text."""
        self._steps = self._picture.check_steps(request.steps)
        if request.candidates > 1 and not pictures.ranker:
            raise InputError(
                f"'candidates' is {request.candidates}, but this bundle has no image encoder that "
                "could rank them; ask for 1, or export a checkpoint with diffusion/image_encoder"
            )

    def prepare(self) -> None:
        """Begin with what needs no volume: a given text goes through the prompt encoder while the
        volume goes through the brain encoder.
        """
        if self._picture.on_gpu:
            return  # the prompt encoder shares the brain encoder's stream: nothing is won
        if "image" in self._request.tasks and self._request.given_prompt:
            worker = ThreadPoolExecutor(1, "prompt")
            self._states = worker.submit(self._pictures.prompt.encode, self._request.given_prompt)
            worker.shutdown(wait=False)

    def begin(self, clip: Floats, latent: Floats, text: str) -> None:
        """Enqueue the picture on the GPU, where that is all there is to do about it: it is made
        while the language model writes on. Parameters are those of `events`."""
        request = self._request
        whole = self._is_whole(request.intermediate) and request.candidates == 1
        if self._begun or not whole or "image" not in request.tasks:
            return
        condition = Condition(clip=clip, latent=latent, states=self._pictures.prompt.empty)
        try:
            condition = replace(condition, states=self._states_of(text))
            made = self._picture.begin(condition, steps=self._steps, seed=request.seed)
        except ScansideError as exc:  # of the picture: the text goes on
            made = Begun(ready=lambda: True, whole=partial(_fail, exc))
        self._begun = condition, made

    @property
    def begun(self) -> bool:
        """Whether the picture is, or was, made beside a text, which slows both down."""
        return self._begun is not None

    @property
    def is_ready(self) -> bool:
        """Whether a picture that was begun is there."""
        return self._begun is not None and self._begun[1].ready()

    def _is_whole(self, every: int) -> bool:
        """Whether nobody looks at the picture, or at the clock, between its steps."""
        return bool(self._picture.on_gpu) and not every and self._clock.deadline_at is None

    def preview(self, latent: Floats) -> Preview:
        """The predicted latent as a picture, also when that is late."""
        cost, left = self._preview_cost(), self._clock.left_s
        if cost > left:
            self._degrade(
                f"preview: late, for it takes about {1e3 * cost:.0f} ms and the deadline leaves "
                f"{1e3 * max(left, 0):.0f} ms"
            )
        pixels = self._shown(latent)
        self._result.preview = pixels
        self._clock.mark("until_preview")
        return Preview(pixels)

    def _shown(self, latent: Floats) -> NDArray[np.uint8]:
        with self._clock.stage("preview"), self._costs.measured(self._preview_stage()):
            return self._picture.preview_pixels(latent)

    def _preview_stage(self) -> str:
        return "preview" if self._picture.has_tiny else "vae"

    def _preview_cost(self) -> float:
        return self._costs.of(self._preview_stage())

    @property
    def least_s(self) -> float:
        """Seconds that the least picture needs."""
        return self._states_cost() + self._cost(self._picture.fewest_steps)

    def _states_cost(self) -> float:
        """Seconds for what a text that is still to come costs."""
        waits = self._request.prompt in ("written", "caption")
        return self._costs.of("states") if waits else 0.0

    def _cost(self, steps: int) -> float:
        rank = self._costs.of("rank") if self._request.candidates > 1 else 0.0
        every = self._request.intermediate
        shown = (steps - 1) // every * self._preview_cost() if every and steps else 0.0
        return steps * self._costs.of("step") + shown + self._costs.of("vae") + rank

    def events(self, clip: Floats, latent: Floats, text: str, about: list[str]) -> Iterator[Event]:
        """Make the picture.

        Parameters
        ----------
        clip, latent : float32
            The encoder's answers.
        text : str
            What conditions the picture; "" for nothing.
        about : list of str
            Sentences for `Result.degraded` that only matter if there is a picture.
        """
        steps = self._steps_that_fit()
        if self._stopped.is_set() and not self._begun:  # what is being made is soon there
            yield from self._stand_in("left out by a stop request", latent)
            return
        if steps == 0:
            yield from self._stand_in("left out, for not even the fewest steps fit", latent)
            return
        if steps < self._steps:
            self._degrade(f"image: {steps} of {self._steps} steps, for the deadline leaves no more")
        for sentence in about:
            self._degrade(sentence)
        try:
            if self._begun:
                condition, _ = self._begun
            else:
                condition = Condition(clip=clip, latent=latent, states=self._states_of(text))
            self._result.image_prompt = text or None
            yield from self._candidates(condition, steps)
        except ScansideError as exc:
            if self._result.image is not None:
                self._degrade(f"image: a further candidate failed: {exc}")
            else:
                yield from self._stand_in(str(exc), latent)

    def _stand_in(self, why: str, latent: Floats) -> Iterator[Event]:
        self._degrade(f"image: {why}; the preview stands in")
        if self._result.preview is None:
            yield self.preview(latent)

    def _states_of(self, text: str) -> Floats:
        if not text:
            return self._pictures.prompt.empty
        if self._states:
            states, cut = self._states.result()
        else:
            with self._costs.measured("states"):
                states, cut = self._pictures.prompt.encode(text, remember=False)
        if cut:
            self._degrade(f"prompt: its last {cut} tokens do not fit the text encoder")
        return states

    def _candidates(self, condition: Condition, steps: int) -> Iterator[Event]:
        wanted, best = self._request.candidates, -np.inf
        for number in range(wanted):
            seed, made = self._request.seed + number, None
            if number == 0 or self._another_fits(steps):
                made = yield from self._candidate(condition, steps, seed, first=number == 0)
            if made is None:
                stopped = self._stopped.is_set()
                why = "by a stop request" if stopped else "for the deadline leaves no more"
                self._degrade(f"image: {number} of {wanted} candidates, {why}")
                return
            if wanted > 1:
                self._result.candidates.append(Candidate(seed, made.similarity))
            if number == 0 or made.similarity > best:
                best = made.similarity
                yield self._keep(made, seed)

    def _another_fits(self, steps: int) -> bool:
        return not self._stopped.is_set() and self._clock.left_s >= self._cost(steps)

    def _keep(self, made: _Made, seed: int) -> Image:
        result, pixels = self._result, made.shown()
        result.image, result.steps, result.image_seed = pixels, made.step.number, seed
        result.planned_steps = made.step.of
        result.schedule, result.beta = self._picture.schedule, self._picture.beta
        self._clock.latency_ms.pop("until_image", None)
        self._clock.mark("until_image")
        return Image(pixels, made.step.number)

    def _candidate(
        self, condition: Condition, steps: int, seed: int, *, first: bool
    ) -> Generator[Event, None, _Made | None]:
        every = self._request.intermediate if first else 0
        if self._is_whole(every):
            return self._whole(condition, steps, seed)
        latest: Step | None = None
        for step in self._timed(self._picture.steps(condition, steps=steps, seed=seed)):
            latest = step
            if step.number == step.of:
                break
            if every and step.number % every == 0:
                yield Intermediate(self._shown(step.latent), step.number, step.of)
            why = self._why_to_break_off()
            if why:
                if not first:
                    return None
                self._degrade(f"image: {step.number} of {step.of} steps, {why}")
                break
        assert latest is not None
        with self._clock.stage("vae"), self._costs.measured("vae"):
            if not self._ranks:
                return _Made(latest, self._picture.pixels(latest.latent))
            image = self._picture.decode(latest.latent)
        return self._compared(latest, image, condition)

    def _whole(self, condition: Condition, steps: int, seed: int) -> _Made:
        """Nothing has to wait between the steps. What `begin` enqueued teaches no costs: the text
        beside it slowed it down."""
        if self._begun:
            made = self._begun[1].whole()
        else:
            made = self._picture.whole(condition, steps=steps, seed=seed, floats=self._ranks)
            self._costs.learn("step", made.denoised_s / steps)
            self._costs.learn("vae", made.decoded_s)
        self._clock.add("diffusion", made.denoised_s)
        self._clock.add("vae", made.decoded_s)
        if made.image is None:
            return _Made(made.step, made.pixels)
        return self._compared(made.step, made.image, condition)

    def _compared(self, step: Step, image: Floats, condition: Condition) -> _Made:
        return _Made(step, image=image, similarity=self._similarity(image, condition.clip))

    def _why_to_break_off(self) -> str:
        if self._stopped.is_set():
            return "by a stop request"
        if self._clock.deadline_at is None:
            return ""
        late = self._clock.left_s < self._costs.of("step") + self._cost(0)
        return "for they took longer than planned and the deadline came near" if late else ""

    def _timed(self, steps: Iterator[Step]) -> Iterator[Step]:
        while True:
            began = time.perf_counter()
            step = next(steps, None)
            if step is None:
                return
            took = time.perf_counter() - began
            self._costs.learn("step", took)
            self._clock.add("diffusion", took)
            yield step

    @property
    def _ranks(self) -> bool:
        """Whether candidates are compared, for which the picture itself has to come to the host."""
        return self._request.candidates > 1

    def _similarity(self, image: Floats, clip: Floats) -> float:
        ranker = self._pictures.ranker
        assert ranker is not None, "looked at when the request came"
        with self._clock.stage("rank"), self._costs.measured("rank"):
            return ranker.similarity(image, clip)

    def _steps_that_fit(self) -> int:
        left = self._clock.left_s - self._states_cost() - self._cost(0)
        if left <= 0:
            return 0
        step = self._costs.of("step")
        most = left / step if step > 0 else self._steps
        return self._picture.steps_within(min(most, self._steps))

    def _degrade(self, sentence: str) -> None:
        self._result.degraded.append(sentence)


def _fail(exc: ScansideError) -> Whole:
    raise exc
