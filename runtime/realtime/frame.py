"""One volume as it arrived: its values as stored, its place, its number, and when it came.

A frame holds nothing that names a person. Whoever makes one reads the few header fields below and
no others; the identity of a series is a short digest, since a UID leads back to a patient.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One complete volume of a run: `data * slope + inter` is its intensity."""

    number: int
    """Acquisition number, counted from 0: the volume's place on the time axis. Numbers may come in
    any order, twice, or never; a negative one was acquired before the run's first."""
    data: NDArray[Any]
    """(X, Y, Z) in the dtype that it was stored in, native byte order, any memory layout."""
    affine: NDArray[np.float64]
    """(4, 4) voxel centres to millimetres, right-anterior-superior."""
    slope: float = 1.0
    inter: float = 0.0
    tr_s: float | None = None
    """Repetition time in seconds as the header states it, None if it does not."""
    series: str
    """Which series it belongs to, as `series_identity` gives it."""
    arrived_s: float
    """When its last byte was noticed, in seconds on the clock of `time.perf_counter()`."""
    acquired_s: float | None = None
    """When it was acquired, in seconds on the scanner's clock from any origin; None if unknown."""


def series_identity(key: str, number: int | None = None) -> str:
    """Name a series without saying whose it is.

    Parameters
    ----------
    key : str
        What tells series apart: a UID, or the part of a file name before the volume's number.
    number : int, optional
        The series number, put in front so that an operator finds it on the console.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
    return digest if number is None else f"{number}-{digest}"
