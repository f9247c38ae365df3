"""Single-trial betas of a running scan, at the same cost for every volume.

Resampling is linear, so the model is fitted to the tokens of the model grid and never to the
scanner's voxels. A trial stands against all others (LSS), drift, motion and noise components. What
becomes known late costs no second look at the volumes:

- a trial that begins, or whose marker arrives up to `hold` volumes late: its column was 0 before;
- later trials: they enter the sum over all trials at the volumes to come;
- a missing volume, a spike: no weight, which gives the same estimate as a regressor for it alone;
- noise components: learnt from the first `hold` volumes, whose rows are all still open then;
- how many nuisance columns the run can carry, and the noise's autoregression: both follow from the
  sums when a beta is asked for.

`cross_products.py` says what a volume costs. A beta costs one pass over the sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .autoregression import Prewhitened
from .basis import orthonormal_nuisance, trial_basis
from .beta import Beta
from .cross_products import CrossProducts
from .design import Event, Regressors
from .glm_config import GlmConfig
from .hrf import Response
from .motion import RADIUS_MM
from .noise_components import NoiseComponents
from .sums import Grams

MOTION = 6
STILL_MM = 0.2
"""A parameter of motion that spreads less than this over the run is no regressor; angles count on
a sphere of 50 mm. What so little motion leaves in volumes that were aligned is less than what its
regressor takes of the activity."""
_SLOTS = 8
"""Trials for which there are columns at first, and each time that they do not suffice."""


class StreamingGlm:
    """The running fit of a scan.

    Parameters
    ----------
    elements : int
        E, elements of the tokens that are fitted.
    config : GlmConfig
    response : Response, optional
        Glover's if None.
    """

    def __init__(self, elements: int, config: GlmConfig, response: Response | None = None) -> None:
        if elements < 1:
            raise InputError(f"'elements' must be at least 1; got {elements}")
        drift = config.drift
        self.config = config
        self.regressors = Regressors(
            response or Response.glover(drift.tr_s), drift.tr_s, config.slice_time_s
        )
        columns = iter(range(1 + drift.columns + MOTION + config.noise_components + _SLOTS))
        self._every = next(columns)
        self._drift = [next(columns) for _ in range(drift.columns)]
        self._motion = [next(columns) for _ in range(MOTION if config.motion else 0)]
        self._noise = [next(columns) for _ in range(config.noise_components)]
        self._free = list(columns)
        self._column: dict[int, int] = {}
        self._components = NoiseComponents(config.noise_components)
        self._sums = CrossProducts(
            1 + len(self._drift) + len(self._motion) + len(self._noise) + len(self._free),
            elements,
            hold=config.hold,
            neighbours=config.autoregressive,
            dtype=config.dtype,
        )

    @property
    def newest(self) -> int:
        """Number of the newest volume, -1 before the first."""
        return self._sums.newest

    @property
    def open_trials(self) -> tuple[int, ...]:
        """Trials whose beta can be asked for."""
        return tuple(self._column)

    @property
    def memory_bytes(self) -> int:
        """What the fit holds; it grows only with the number of trials that are open at once."""
        return self._sums.memory_bytes

    def add_event(self, onset_s: float, duration_s: float) -> int:
        """Take in a trial, before or after it begins.

        Parameters
        ----------
        onset_s, duration_s : float
            Seconds, from the beginning of volume 0.

        Returns
        -------
        trial : int

        Raises
        ------
        InputError
            It comes later than `hold` volumes after its onset, so that volumes which it explains
            are summed already.
        """
        event = Event(onset_s, duration_s)
        first = self._sums.open_frames.start
        if first > 0 and onset_s < self.regressors.time_s(first - 1):
            raise InputError(
                f"the event at {onset_s:g} s comes too late: volumes before "
                f"{self.regressors.time_s(first):g} s are summed already; send markers within "
                f"{self.config.hold} volumes, or raise 'hold'"
            )
        trial = self.regressors.add(event)
        if self.newest >= 0:
            self._begin(self.newest)
        return trial

    def add_volume(
        self,
        frame: int,
        values: NDArray[Any],
        *,
        motion: NDArray[np.float64] | None = None,
        noise: NDArray[np.float32] | None = None,
        spike: bool = False,
    ) -> bool:
        """Take in a volume; those that are never given have no weight.

        Parameters
        ----------
        frame : int
            Acquisition number, from 0, in any order within `hold`.
        values : (E,) float
            Tokens of the volume, raw.
        motion : (6,) float64
            Needed where the configuration has motion.
        noise : (P,) float32
            Voxels outside the mask, needed where the configuration has noise components.
        spike : bool
            Give it no weight.

        Returns
        -------
        taken : bool
            False if it comes more than `hold` volumes late.

        Raises
        ------
        InputError
            Another number of elements, NaN or infinity, or no motion or noise where it is needed.
        """
        values = np.ravel(values)
        self._check(values, motion, noise)
        if frame <= self.newest and frame not in self._sums.open_frames:
            return False
        row = np.zeros(self._sums.columns)
        row[self._drift] = self.config.drift.row(frame)
        if self._motion:
            row[self._motion] = motion
        if self._noise and noise is not None:
            if not spike:
                self._components.see(frame, noise)
            row[self._noise] = self.noise_scores(noise)
        self._sums.put(frame, row, values)
        self._begin(frame)
        self._write_trials(range(frame, frame + 1))
        if spike:
            self._sums.drop(frame)
        self._learn()
        self._close()
        return True

    def spoil(self, frame: int) -> bool:
        """Give a volume no weight after all, such as one found to be a spike; False if it is too
        old to be changed, or not there."""
        there = self._sums.has(frame)
        self._components.forget(frame)
        self._sums.drop(frame)
        return there

    def noise_scores(self, noise: NDArray[np.float32]) -> NDArray[np.float64]:
        """Noise components of a volume's voxels outside the mask; 0 until they are learnt."""
        if not self._components.learnt:
            return np.zeros(self.config.noise_components)
        return self._components.scores(noise)

    def beta(self, trial: int) -> Beta:
        """A trial's activity, from all volumes so far.

        Raises
        ------
        InputError
            The trial is not open, or cannot be told from everything else yet.
        """
        column = self._column.get(trial)
        if column is None:
            raise InputError(
                f"trial {trial} is not open, those that are: {list(self._column)}; ask from its "
                f"first volume on, until {self.config.open_s:g} s after its onset ('open_s')"
            )
        grams = self._sums.grams()
        groups = [[self._noise[i] for i in group] for group in self._components.groups]
        blocks = [self._drift[:1], self._drift[1:], self._moving(grams), *groups]
        most = max(grams.volumes // self.config.volumes_per_column, 1)
        nuisance = orthonormal_nuisance(grams.now, blocks, most)
        basis = trial_basis(grams.now, nuisance, column, self._every)
        freedom = 0 if basis is None else grams.volumes - basis.combinations.shape[1]
        if basis is None or freedom < 1:
            raise InputError(
                f"trial {trial} cannot be told from drift and other trials by the "
                f"{grams.volumes} volumes so far; ask again some volumes later"
            )
        values = np.empty(self._sums.elements, np.float32)
        variance = np.empty(self._sums.elements, np.float32)
        whitened = Prewhitened.prepare(basis, grams) if self.config.autoregressive else None
        for block in self._sums.project(basis.combinations):
            if whitened is not None:
                beta, noise = whitened.estimate(block)
            else:
                beta = block.now[-1] / basis.length
                left = block.squares - np.einsum("pl,pl->l", block.now, block.now)
                noise = np.maximum(left, 0) / (freedom * basis.length**2)
            values[block.elements], variance[block.elements] = beta, noise
        return Beta(
            trial=trial,
            values=values,
            variance=variance,
            newest=self.newest,
            volumes=grams.volumes,
            freedom=freedom,
        )

    def _check(
        self,
        values: NDArray[Any],
        motion: NDArray[np.float64] | None,
        noise: NDArray[np.float32] | None,
    ) -> None:
        if values.size != self._sums.elements:
            raise InputError(
                f"a volume must have {self._sums.elements} elements, as the run's others; got "
                f"{values.size}"
            )
        if not np.isfinite(values).all():
            raise InputError("a volume holds NaN or infinity; treat it as missing")
        if self._motion and (motion is None or motion.shape != (MOTION,)):
            raise InputError("'motion' must be six parameters, or the configuration without motion")
        if self._noise and noise is None:
            raise InputError("'noise' must be the voxels outside the mask, or 'noise_components' 0")

    def _moving(self, grams: Grams) -> list[int]:
        """Columns of motion that explain more than they cost. The smallest follow what registration
        mistakes for motion, and that is the activity itself."""
        if not self._motion or grams.volumes < 1:
            return []
        constant = self._drift[0]
        mean = grams.now[self._motion, constant] / grams.volumes
        squares = np.diag(grams.now)[self._motion] / grams.volumes
        spread_mm = np.sqrt(np.maximum(squares - mean**2, 0)) * ([1.0] * 3 + [RADIUS_MM] * 3)
        return [column for column, mm in zip(self._motion, spread_mm, strict=True) if mm > STILL_MM]

    def _begin(self, frame: int) -> None:
        """Open the trials that have begun by a volume."""
        for trial in self.regressors.reach(frame):
            if not self._free:
                self._free = list(range(self._sums.columns, self._sums.columns + _SLOTS))
                self._sums.widen(_SLOTS)
            column = self._free.pop()
            self._sums.clear_column(column)
            self._column[trial] = column
            self._write_trials(self._sums.open_frames)

    def _write_trials(self, frames: range) -> None:
        """What the trials predict, into open rows."""
        for frame in frames:
            if not self._sums.has(frame):
                continue
            row = self._sums.row(frame)
            row[self._every] = self.regressors.all(frame)
            for trial, column in self._column.items():
                row[column] = self.regressors.of(trial, frame)

    def _learn(self) -> None:
        """Find the noise components once there are volumes enough, and write them to open rows."""
        if not self._noise or self._components.learnt or self.newest < self.config.hold - 1:
            return
        for frame, scores in self._components.learn().items():
            if self._sums.has(frame):
                self._sums.row(frame)[self._noise] = scores

    def _close(self) -> None:
        """Free the columns of trials that are over."""
        now = self.regressors.time_s(self.newest)
        for trial in list(self._column):
            if now > self.regressors.events[trial].onset_s + self.config.open_s:
                self._free.append(self._column.pop(trial))
        self.regressors.pass_by(self._sums.open_frames.start)
