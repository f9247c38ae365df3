"""Betas of a run as they are made after it, and such with the noise of those made during it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanside.runtime import Decoder
from scanside.runtime.errors import InputError
from scanside.runtime.realtime.beta import Beta
from scanside.runtime.realtime.beta_scale import BetaScale
from scanside.runtime.realtime.design import Event, Regressors, lss_design
from scanside.runtime.realtime.drift import Drift
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.glm import MOTION, StreamingGlm
from scanside.runtime.realtime.glm_config import GlmConfig
from scanside.runtime.realtime.hrf import Response
from scanside.runtime.realtime.run_setup import RunRequest, make_intake
from scanside.runtime.realtime.schedule import Due, Schedule
from scanside.runtime.realtime.session_config import SessionConfig
from scanside.runtime.realtime.stimuli import Stimulus

COMPONENTS = 5
Floats = NDArray[np.float32]
Betas = dict[int, Beta]
"""By trial."""


class Kept:
    """Stands where the streaming fit does, and keeps all that it is given."""

    def __init__(self) -> None:
        self.values: list[Floats] = []
        self.motion: list[NDArray[np.float64]] = []
        self.noise: list[Floats] = []
        self.weighted: list[bool] = []

    def add_volume(
        self, frame: int, values: Floats, *, motion: Any, noise: Any, spike: bool
    ) -> bool:
        """Keep one volume."""
        self.values.append(values)
        self.motion.append(motion)
        self.noise.append(noise)
        self.weighted.append(not spike)
        return True


class WholeRun:
    """A run that is over, aligned and cut into tokens as during the run.

    Parameters
    ----------
    decoder : Decoder
    config : SessionConfig
    stimuli : sequence of Stimulus
    frames : sequence of Frame
    """

    def __init__(
        self,
        decoder: Decoder,
        config: SessionConfig,
        stimuli: Sequence[Stimulus],
        frames: Sequence[Frame],
    ) -> None:
        self._decoder, self._config, self._stimuli = decoder, config, stimuli
        request = RunRequest(source=".", events=".", out=Path(), threads=1)
        self._intake = make_intake(decoder, request, config)
        self._kept = Kept()
        for frame in frames:
            self._intake.take(frame, frame.number, self._kept)  # type: ignore[arg-type]
        self._there = np.flatnonzero(self._kept.weighted)
        self._values = np.stack(self._kept.values)[self._there]
        self._response = Response.glover(config.tr_s)
        self._regressors = Regressors(self._response, config.tr_s, config.volume_time_s)
        for stimulus in stimuli:
            self._regressors.add(Event(stimulus.onset_s, stimulus.duration_s))
        self._drift = Drift(volumes=config.kept, tr_s=config.tr_s)
        noise = np.stack(self._kept.noise)[self._there].astype(np.float64)
        noise = (noise - noise.mean(axis=0)) / noise.std(axis=0)
        components = np.linalg.svd(noise, full_matrices=False)[0][:, :COMPONENTS]
        motion = np.stack(self._kept.motion)[self._there]
        self._nuisance = np.concatenate([motion, components], axis=1)

    def betas(self, *, motion: bool = True) -> Betas:
        """Least squares separate over all volumes, with motion or without, and the components of
        all."""
        found: Betas = {}
        for trial in range(len(self._stimuli)):
            design = self._design(trial)
            if not motion:
                design = np.delete(design, np.s_[-COMPONENTS - MOTION : -COMPONENTS], axis=1)
            weights = np.linalg.pinv(design).astype(np.float32)
            squares = np.square(self._values - design.astype(np.float32) @ (weights @ self._values))
            freedom = len(self._there) - design.shape[1]
            square_norm = float(np.square(weights[0], dtype=np.float64).sum())
            found[trial] = Beta(
                trial=trial,
                values=weights[0] @ self._values,
                variance=squares.sum(axis=0) * np.float32(square_norm / freedom),
                newest=int(self._there[-1]),
                volumes=len(self._there),
                freedom=freedom,
            )
        return found

    def with_noise_of_run(self, betas: Betas) -> tuple[Betas, Betas]:
        """Betas as far from the given ones as the fast and the refined ones of the run are.

        What a fit of every trial by itself leaves of the volumes is noise, with all that it has in
        common over space and time. Half a run later, where it has nothing to do with what it did to
        the betas, the run's own fit makes of it what it makes of noise; so much of that is added
        that each beta is moved as far as the run's own is.
        """
        every = np.concatenate(
            [
                np.stack([self._design(trial)[:, 0] for trial in betas], axis=1),
                self._design(0)[:, 2:],
            ],
            axis=1,
        ).astype(np.float32)
        left = self._values - every @ (np.linalg.pinv(every) @ self._values)
        noise = self._streamed(np.roll(left, len(left) // 2, axis=0))
        out: tuple[Betas, Betas] = {}, {}
        for (trial, revision), found in self._streamed(self._values).items():
            beta, error = betas[trial], noise[trial, revision].values
            far = float(np.std(found.values - beta.values) / np.std(error))
            out[revision][trial] = replace(
                found, values=beta.values + np.float32(far) * error, variance=beta.variance
            )
        return out

    def captions(self, betas: Betas) -> dict[int, str]:
        """Decoded after all of them have entered the statistics by which each is normalised."""
        shape = self._decoder.stages.preprocessor.geometry.shape
        scale = BetaScale.of_bundle(self._decoder.bundle, self._intake.elements, shape)
        brightness = self._intake.brightness
        height = max(
            self._response.at(float(t), 0.0, self._stimuli[0].duration_s)
            for t in np.arange(0, 40, 0.1)
        )
        for beta in betas.values():
            scale.tokens(beta, brightness, height, 1)
        found: dict[int, str] = {}
        for trial, beta in betas.items():
            tokens, _, _ = scale.tokens(beta, brightness, height, 1)
            found[trial] = self._decoder.decode(tokens, tasks=("caption",)).caption or ""
        return found

    def _design(self, trial: int) -> NDArray[np.float64]:
        frames = self._there.tolist()
        return lss_design(self._regressors, trial, frames, self._drift, self._nuisance)

    def _streamed(self, values: Floats) -> dict[tuple[int, int], Beta]:
        """What the run's fit makes of other values (T, E) at the same volumes."""
        config = self._config
        settings = GlmConfig(
            drift=self._drift,
            slice_time_s=config.volume_time_s,
            noise_components=config.noise_components,
        )
        glm = StreamingGlm(values.shape[1], settings, self._response)
        schedule = Schedule(config.tr_s, config.kept, config.windows_s)
        for stimulus in self._stimuli:
            schedule.add(glm.add_event(stimulus.onset_s, stimulus.duration_s), stimulus)
        found: dict[tuple[int, int], Beta] = {}

        def close(due: Due) -> None:
            with suppress(InputError):  # too few volumes: the run has no answer either
                found[due.trial, due.revision] = glm.beta(due.trial)

        rows = dict(zip(self._there.tolist(), values, strict=True))
        for frame, (motion, noise) in enumerate(
            zip(self._kept.motion, self._kept.noise, strict=True)
        ):
            row = rows.get(frame, values[0])
            glm.add_volume(frame, row, motion=motion, noise=noise, spike=frame not in rows)
            for due in schedule.reach(frame):
                close(due)
        for due in schedule.rest():
            close(due)
        return found
