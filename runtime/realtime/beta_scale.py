"""From a trial's beta, in the scanner's units, to the tokens that the encoder was trained on.

A beta becomes percent of the run's own brightness at the height of the response, as the bundle's
statistics are; then every element is freed of its mean and divided by its standard deviation over
the trials so far. The bundle's statistics are the first trials of every run, so to say: they count
as `BUNDLE_TRIALS`, until the run's own outweigh them. A former run of the same subject does better.
The fast and the refined answer are normalised each among its own kind, for the shorter a window the
larger the error in it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BundleError, InputError
from .beta import Beta
from .normalisation import RunningNormalisation

BUNDLE_TRIALS = 10
"""Trials that a bundle's statistics count for."""
FORMER_TRIALS = 40
"""And most that a former run's count for."""
UNITS = "percent signal change"
LEAST_BRIGHTNESS = 0.2
"""Share of the median brightness below which an element is not in the head."""
_FILES = ("normalisation-fast.npz", "normalisation-refined.npz")


class BetaScale:
    """The scale of each revision of an answer.

    Parameters
    ----------
    normalisations : pair of RunningNormalisation
        For the fast and for the refined answers.
    elements : (E,) int
        Where the beta's elements are in the flat tokens.
    shape : (2,) int
        Of the tokens, (N, C).
    """

    def __init__(
        self,
        normalisations: tuple[RunningNormalisation, RunningNormalisation],
        elements: NDArray[np.int64],
        shape: tuple[int, int],
    ) -> None:
        self._at_first = normalisations
        self._elements = elements
        self._shape = shape
        self.begin()

    def begin(self) -> None:
        """Forget the trials of this run."""
        self._normalisations = tuple(one.copy() for one in self._at_first)

    @classmethod
    def of_bundle(
        cls,
        bundle: Bundle,
        elements: NDArray[np.int64],
        shape: tuple[int, int],
        former: Path | None = None,
    ) -> BetaScale:
        """Begin with a bundle's statistics, or with what a former run has left.

        Parameters
        ----------
        bundle : Bundle
        elements, shape
            As above.
        former : path, optional
            The folder of a former run of the same subject and task.

        Raises
        ------
        BundleError
            The bundle does not decode betas, or has no statistics in percent signal change and
            there is no former run either.
        InputError
            A former run that cannot be used.
        """
        spec, given = bundle.manifest.encoder, bundle.manifest.input
        identity = f"{bundle.sha256[:16]} {spec.file}"
        if given.kind != "beta":
            raise BundleError(
                f"this bundle decodes volumes of kind {given.kind!r}; a run gives betas, so name a "
                "bundle that decodes these"
            )
        if former is not None:
            fast, refined = (
                RunningNormalisation.load(former / file, elements.size, identity, FORMER_TRIALS)
                for file in _FILES
            )
            return cls((fast, refined), elements, shape)
        if spec.normalisation == "none" or given.units != UNITS:
            raise BundleError(
                "this bundle has no normalisation for betas of a run: its statistics are "
                f"{spec.normalisation!r} in {given.units!r}, needed are those of each voxel in "
                f"{UNITS!r}; export it with them, or begin from a former run with --former DIR"
            )
        arrays = bundle.arrays(spec.arrays)
        mean = arrays["mean"].ravel()[elements].astype(np.float64)
        deviation = 1 / arrays["inv_std"].ravel()[elements].astype(np.float64)
        fast, refined = (
            RunningNormalisation.of(mean, deviation, BUNDLE_TRIALS, identity) for _ in _FILES
        )
        return cls((fast, refined), elements, shape)

    def tokens(
        self, beta: Beta, brightness: NDArray[np.float32], height: float, revision: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """A beta as the encoder takes it. It enters the statistics afterwards.

        Parameters
        ----------
        beta : Beta
        brightness : (E,) float32
            Mean of the run so far.
        height : float
            Largest value of the trial's regressor.
        revision : int

        Returns
        -------
        tokens : (N, C) float32
        values, variance : (E,) float32
            What is in them, and how uncertain that is.

        Raises
        ------
        InputError
            The run has no brightness.
        """
        median = float(np.median(brightness))
        if not median > 0:
            raise InputError("the model's voxels are dark in this run; check its place and units")
        percent = np.float32(100 * height) / np.maximum(brightness, LEAST_BRIGHTNESS * median)
        scaled = beta.values * percent
        normalisation = self._normalisations[revision]
        values = normalisation.normalise(scaled)
        spread = normalisation.variance
        variance = np.zeros(values.size, np.float32)
        np.divide(
            beta.variance * percent**2, spread, out=variance, where=spread > 0, casting="unsafe"
        )
        normalisation.update(scaled)
        tokens = np.zeros(self._shape, np.float32)
        tokens.ravel()[self._elements] = values
        return tokens, values, variance

    def save(self, folder: Path) -> None:
        """Leave the statistics to the next run."""
        for normalisation, file in zip(self._normalisations, _FILES, strict=True):
            normalisation.save(folder / file)
