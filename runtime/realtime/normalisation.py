"""Betas to the scale on which an encoder was trained, by what the run has shown so far.

Every element is freed of its running mean and divided by its running standard deviation (Welford
1962, doi:10.1080/00401706.1962.10490022). Nothing of the future enters. The state of a run is the
best beginning for the next one of the same subject and task.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

_FORMAT = 1
LEAST = 2
"""Betas before which there is no standard deviation."""


class RunningNormalisation:
    """Running mean and variance of betas.

    Parameters
    ----------
    elements : int
        E, elements of a beta.
    identity : str
        What the betas belong to: bundle, encoder, subject, task. A state of another is refused.

    Attributes
    ----------
    count : int
        Betas that are in it, those of the former run included.
    """

    def __init__(self, elements: int, identity: str) -> None:
        self.identity = identity
        self.count = 0
        self._mean = np.zeros(elements, np.float64)
        self._squares = np.zeros(elements, np.float64)  # sum of squared differences from the mean

    @classmethod
    def of(
        cls, mean: NDArray[Any], deviation: NDArray[Any], count: int, identity: str
    ) -> RunningNormalisation:
        """Begin with statistics (E,) that are known, as if they came from so many betas."""
        out = cls(mean.size, identity)
        out.count, out._mean = count, np.array(mean, np.float64)
        out._squares = np.square(np.asarray(deviation, np.float64)) * (count - 1)
        return out

    def copy(self) -> RunningNormalisation:
        """The same state, to go on by itself."""
        out = RunningNormalisation(self._mean.size, self.identity)
        out.count, out._mean, out._squares = self.count, self._mean.copy(), self._squares.copy()
        return out

    @property
    def ready(self) -> bool:
        """Whether betas can be normalised."""
        return self.count >= LEAST

    @property
    def mean(self) -> NDArray[np.float64]:
        """(E,) running mean; a copy."""
        return self._mean.copy()

    @property
    def variance(self) -> NDArray[np.float64]:
        """(E,) running variance over count - 1."""
        return self._squares / max(self.count - 1, 1)

    def update(self, beta: NDArray[Any]) -> None:
        """Take in a trial's beta (E,).

        Raises
        ------
        InputError
            Another number of elements, NaN or infinity.
        """
        if beta.shape != self._mean.shape or not np.isfinite(beta).all():
            raise InputError(
                f"a beta must be {self._mean.shape} finite numbers; got {beta.shape}"
                f"{'' if np.isfinite(beta).all() else ' with NaN or infinity'}"
            )
        self.count += 1
        before = beta - self._mean
        self._mean += before / self.count
        self._squares += before * (beta - self._mean)

    def normalise(self, beta: NDArray[Any]) -> NDArray[np.float32]:
        """A beta (E,) in standard deviations from the mean, float32; 0 where nothing varies.

        Raises
        ------
        InputError
            Fewer than two betas are known.
        """
        if not self.ready:
            raise InputError(
                f"{self.count} betas are too few to normalise by, {LEAST} are needed; begin with "
                "the saved state of a former run"
            )
        deviation = np.sqrt(self.variance)
        varies = deviation > 0
        out = np.zeros(beta.shape, np.float32)
        np.divide(beta - self._mean, deviation, out=out, where=varies, casting="unsafe")
        return out

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        arriving = path.with_name(f".{path.name}.{os.getpid()}")
        with arriving.open("wb") as file:
            np.savez(
                file,
                format=_FORMAT,
                identity=self.identity,
                count=self.count,
                mean=self._mean,
                squares=self._squares,
            )
        arriving.replace(path)

    @classmethod
    def load(
        cls, path: Path, elements: int, identity: str, most: int | None = None
    ) -> RunningNormalisation:
        """Begin with the state of a former run.

        Parameters
        ----------
        path : path
            As `save` wrote it.
        elements, identity
            Of the run to come.
        most : int, optional
            Let the former run count as no more betas than this, so that the new one can tell where
            the scanner has drifted.

        Raises
        ------
        InputError
            No such file, not such a file, or the state of something else.
        """
        if most is not None and most < LEAST:
            raise InputError(f"'most' must be at least {LEAST}; got {most}")
        out = cls(elements, identity)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as state:
                found, of = int(state["format"]), str(state["identity"])
                count = int(state["count"])
                mean, squares = state["mean"], state["squares"]
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as exc:
            raise InputError(f"{path} is no saved normalisation ({exc}); start without it") from exc
        if found != _FORMAT:
            raise InputError(f"{path} has format {found}, this version reads {_FORMAT}")
        if of != identity:
            raise InputError(f"{path} belongs to {of!r}, this run to {identity!r}")
        if mean.shape != (elements,) or squares.shape != (elements,) or count < 0:
            raise InputError(
                f"{path} has {mean.size} elements and {count} betas; this run has {elements} "
                "elements"
            )
        if not (np.isfinite(mean).all() and np.isfinite(squares).all() and (squares >= 0).all()):
            raise InputError(f"{path} is damaged: its mean or variance is not finite")
        kept = count if most is None else min(count, most)
        if count > LEAST - 1:
            squares = squares * (kept - 1) / (count - 1)  # the same variance
        out.count, out._mean, out._squares = kept, mean.astype(float), squares.astype(float)
        return out
