"""One attempt at a run: its fit, its trials, and which answers its volumes complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .beta_scale import BetaScale
from .confidence import signal_share
from .drift import Drift
from .frame import Frame
from .glm import StreamingGlm
from .glm_config import GlmConfig
from .hrf import Response
from .intake import Intake, Taken
from .schedule import Due, Schedule
from .session_config import SessionConfig
from .stimuli import Stimulus

_REMEMBERED = 256
"""Volumes of which it is known whether they have weight; longer than any window."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Closed:
    """A trial's activity when a window of it has closed."""

    tokens: NDArray[np.float32]
    """(N, C) normalised."""
    values: NDArray[np.float32]
    """(E,) what of the tokens is fitted."""
    variance: NDArray[np.float32]
    """(E,) of its estimate."""
    signal: float
    """Share of it that is more than uncertainty, 0 to 1."""
    notes: tuple[str, ...]
    """What it lacks, a sentence each."""


class Attempt:
    """A run from its first volume on; the scanner may break it off and begin another.

    Parameters
    ----------
    number : int
        How many attempts came before.
    config : SessionConfig
    intake : Intake
        Begun anew here.
    scale : BetaScale
        Begun anew here.
    """

    def __init__(
        self, number: int, config: SessionConfig, intake: Intake, scale: BetaScale
    ) -> None:
        self.number = number
        self.stimuli: list[Stimulus] = []
        self.newest = -1
        """Number of the newest volume, from the first kept one."""
        self.schedule = Schedule(config.tr_s, config.kept, config.windows_s)
        self._config = config
        self._intake = intake
        self._scale = scale
        self._response = Response.glover(config.tr_s)
        self._weighted: set[int] = set()
        self._heights: dict[float, float] = {}
        """By a trial's duration. Not `functools.cache`: it would keep the attempt's fit alive."""
        settings = GlmConfig(
            drift=Drift(volumes=config.kept, tr_s=config.tr_s),
            slice_time_s=config.volume_time_s,
            motion=config.correct_motion,
            noise_components=config.noise_components,
            autoregressive=config.autoregressive,
            open_s=max(60.0, 2 * config.refined_s),
        )
        self._glm = StreamingGlm(intake.elements.size, settings, self._response)
        intake.begin()
        scale.begin()

    def add(self, stimuli: Iterable[Stimulus], wanted: frozenset[int] | None = None) -> None:
        """Take in trials; all of them are fitted, the wanted ones are answered.

        Raises
        ------
        InputError
            One that comes too late.
        """
        for stimulus in stimuli:
            trial = self._glm.add_event(stimulus.onset_s, stimulus.duration_s)
            self.stimuli.append(stimulus)
            if wanted is None or trial in wanted:
                self.schedule.add(trial, stimulus)

    def take(self, frame: Frame, number: int, known: Mapping[str, Any] | None) -> Taken:
        """Take in a volume; errors are those of `Intake.take`."""
        taken = self._intake.take(frame, number, self._glm, known)
        if taken.in_time and not taken.spike:
            self._weighted.add(number)
        if number > self.newest:
            self.newest = number
            self._weighted.discard(number - _REMEMBERED)
        return taken

    def spoil(self, number: int) -> None:
        """A volume that was taken in is worth nothing after all."""
        self._glm.spoil(number)
        self._weighted.discard(number)
        self._intake.retract(number)

    def close(self, due: Due) -> Closed:
        """What is known of a trial now.

        Raises
        ------
        InputError
            It cannot be told from everything else, or has not begun.
        """
        stimulus = self.stimuli[due.trial]
        beta = self._glm.beta(due.trial)
        tokens, values, variance = self._scale.tokens(
            beta, self._intake.brightness, self._height(stimulus.duration_s), due.revision
        )
        return Closed(
            tokens=tokens,
            values=values,
            variance=variance,
            signal=signal_share(values, variance),
            notes=tuple(self._notes(due, stimulus)),
        )

    def _notes(self, due: Due, stimulus: Stimulus) -> Iterable[str]:
        if due.cut_s > 0:
            yield f"window: the run ends {due.cut_s:.1f} s before it does"
        first = int(stimulus.onset_s / self._config.tr_s)
        window = range(first, due.last + 1)
        lacking = sum(number not in self._weighted for number in window)
        if lacking:
            yield f"window: {lacking} of its {len(window)} volumes have no weight"

    def _height(self, duration_s: float) -> float:
        """Largest value of a trial's regressor."""
        if duration_s not in self._heights:
            times = np.arange(0.0, duration_s + self._response.length_s, 0.1)
            values = (self._response.at(float(time), 0.0, duration_s) for time in times)
            self._heights[duration_s] = max(values)
        return self._heights[duration_s]
