"""Denoising that stays on the GPU: step by step, or as a whole with the picture behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from .denoising import Begun, Condition, Floats, Step, Whole, finite_step
from .engines.buffer import Buffer
from .resident import Resident
from .schedule import Schedule


class ResidentDenoiser:
    """What asks `Resident` to enqueue, waits, and looks at what came out.

    Parameters
    ----------
    resident : Resident
    width : int
        Numbers of a CLIP vector.
    """

    def __init__(self, resident: Resident, width: int) -> None:
        self.resident, self.gpu = resident, resident.gpu
        self._clip = self.gpu.allocate((1, width), np.float32)
        self._began, self._denoised, self._decoded = (self.gpu.clock() for _ in range(3))
        self._at_work = False
        """Whether a picture was begun and not waited for."""

    def steps(
        self, condition: Condition, plan: Schedule, beta: float, rng: np.random.Generator
    ) -> Iterator[Step]:
        """Step by step, waiting for each: only the clean latent comes to the host.

        ScansideError where it is not finite.
        """
        self._start(condition, plan, beta, rng)
        for k in range(plan.steps):
            self.resident.step(plan, k)
            self.resident.end(plan, k + 1)
            self.gpu.wait()
            yield finite_step(Step(k + 1, plan.steps, self.resident.latent))

    def begin(
        self,
        condition: Condition,
        plan: Schedule,
        beta: float,
        rng: np.random.Generator,
        *,
        floats: bool,
    ) -> Begun:
        """Enqueue all steps and the picture of the latent; with `floats` in float32, too.

        One picture at a time: it is waited for before another one is begun, or given up.
        """
        self.gpu.note(self._began)
        self._start(condition, plan, beta, rng)
        return self._rest(plan, floats=floats)

    def from_device(
        self,
        upstream: Callable[[], None],
        clip: Buffer,
        latent: Buffer,
        states: Floats,
        plan: Schedule,
        beta: float,
        rng: np.random.Generator,
    ) -> Whole:
        """As `begin`, from what an encoder leaves on the device, and waited for.

        Parameters
        ----------
        upstream : callable
            Enqueues what writes `clip` and `latent`; while the GPU is at it, noise is drawn.
        clip : (1, D)
        latent : (1, 4, h, w)
        states : (1, L, W) float32
        plan, beta, rng
            As in `begin`.
        """
        upstream()
        self.resident.send(plan, rng)
        self.gpu.note(self._began)
        self.resident.begin(states, beta, latent, clip)
        return self._rest(plan, floats=False).whole()

    def _start(
        self, condition: Condition, plan: Schedule, beta: float, rng: np.random.Generator
    ) -> None:
        self.gpu.upload(condition.clip, self._clip)
        self.resident.send(plan, rng, condition.latent)
        self.resident.begin(condition.states, beta, None, self._clip)

    def _rest(self, plan: Schedule, *, floats: bool) -> Begun:
        """Enqueue all steps and the picture."""
        self.resident.denoise(plan)
        self.gpu.note(self._denoised)
        self.resident.decode(floats=floats)
        self.gpu.note(self._decoded)
        self._at_work = True
        return Begun(
            ready=partial(self.gpu.is_past, self._decoded),
            whole=partial(self._made, plan, floats=floats),
        )

    def _made(self, plan: Schedule, *, floats: bool) -> Whole:
        """Wait once, and look at what came out."""
        resident, gpu = self.resident, self.gpu
        gpu.wait()
        self._at_work = False
        return Whole(
            finite_step(Step(plan.steps, plan.steps, resident.latent)),
            resident.pixels,
            resident.image if floats else None,
            gpu.seconds_between(self._began, self._denoised),
            gpu.seconds_between(self._denoised, self._decoded),
        )

    def close(self) -> None:
        """Free the graphs and unload the kernels, when a picture that nobody waited for is done
        with them; may be called twice."""
        try:
            if self._at_work:
                self._at_work = False
                self.gpu.wait()
        finally:
            self.resident.close()
