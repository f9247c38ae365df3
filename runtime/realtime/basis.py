"""What of the nuisance a run can tell so far, and one trial against it and all other trials.

Few volumes cannot carry many regressors, and cosines planned for the whole run look alike over its
beginning. So nuisance enters in steps: block after block, made orthonormal over the volumes so far,
each direction only if enough of it is left, and all of them together no more than one for so many
volumes. At the end of a run this is the whole nuisance, in other coordinates. A block of which only
a part has room is cut where energy falls, never between directions of like energy: which of those
came in would depend on the last digit of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

LEAST_SHARE = 1e-4
"""Share of a unit regressor's energy that must be left beside those before it. Below, float32 sums
hold too little of it; above, truly slow drift would be lost."""
FALL = 1.05
"""Directions are told apart where one has so many times the energy of the next. They then turn by
no more than about 20 times what disturbs the data, beside its own size."""


@dataclass(frozen=True, slots=True, eq=False)
class TrialBasis:
    """Combinations F (K, p) of the columns with F'X'XF = 1, the last of them the trial's own."""

    combinations: Matrix
    length: float
    """Norm of what of the trial's regressor is its own: the beta is the last product over this."""


def orthonormal_nuisance(gram: Matrix, blocks: Sequence[Sequence[int]], most: int) -> Matrix:
    """Combinations of nuisance columns that are orthonormal over the volumes so far.

    Parameters
    ----------
    gram : (K, K) float64
        X'X.
    blocks : sequence of columns
        In order of their weight: the first is taken first.
    most : int
        Combinations at most.

    Returns
    -------
    basis : (K, p) float64
        basis' gram basis = 1.
    """
    basis = np.zeros((len(gram), 0))
    for block in blocks:
        used = [column for column in block if gram[column, column] > 0]
        room = most - basis.shape[1]
        if not used or room < 1:
            continue
        unit = np.zeros((len(gram), len(used)))
        unit[used, range(len(used))] = 1 / np.sqrt(np.diag(gram)[used])
        rest = _without(unit, basis, gram)
        energy, directions = np.linalg.eigh(rest.T @ gram @ rest)
        energy, directions = energy[::-1], directions[:, ::-1]
        there = int(np.count_nonzero(energy > LEAST_SHARE))
        kept = slice(there if there <= room else max(falls(energy, room), default=0))
        basis = np.hstack([basis, rest @ directions[:, kept] / np.sqrt(energy[kept])])
    return basis


def falls(energy: NDArray[np.float64], most: int) -> list[int]:
    """After how many of the directions, and after at most so many, their energy falls.

    Parameters
    ----------
    energy : (T,) float64
        From the largest to the smallest, more than `most` of them. Those with less than
        `LEAST_SHARE` of the first's are none.
    most : int

    Examples
    --------
    >>> falls(np.array([9.0, 4.0, 3.9, 2.0, 1.9]), 4)
    [1, 3, 4]
    """
    least = LEAST_SHARE * energy[0]
    return [n for n in range(1, most + 1) if energy[n - 1] > max(FALL * energy[n], least)]


def trial_basis(gram: Matrix, nuisance: Matrix, trial: int, every: int) -> TrialBasis | None:
    """The nuisance, all other trials, and the trial.

    Parameters
    ----------
    gram : (K, K) float64
    nuisance : (K, p) float64
        Orthonormal.
    trial, every : int
        Columns of the trial, and of the sum over all trials.

    Returns
    -------
    basis : TrialBasis or None
        None while the trial cannot be told from everything else.
    """
    own, others = np.zeros((len(gram), 1)), np.zeros((len(gram), 1))
    own[trial], others[every], others[trial] = 1, 1, -1
    basis = nuisance
    energy_of_all = gram[every, every]
    if (others.T @ gram @ others).item() > LEAST_SHARE * energy_of_all:
        rest = _without(others, basis, gram)
        energy = (rest.T @ gram @ rest).item()
        if energy > LEAST_SHARE * (others.T @ gram @ others).item():
            basis = np.hstack([basis, rest / np.sqrt(energy)])
    rest = _without(own, basis, gram)
    energy = (rest.T @ gram @ rest).item()
    if not energy > LEAST_SHARE * gram[trial, trial]:
        return None
    length = float(np.sqrt(energy))
    return TrialBasis(np.hstack([basis, rest / length]), length)


def _without(columns: Matrix, basis: Matrix, gram: Matrix) -> Matrix:
    """Columns less what the basis holds of them; twice, since once leaves rounding behind."""
    for _ in range(2):
        columns = columns - basis @ (basis.T @ gram @ columns)
    return columns
