"""What of the nuisance a run can tell so far, and one trial against it and all other trials.

Few volumes cannot carry many regressors, and cosines planned for the whole run look alike over its
beginning. So nuisance enters in steps: block after block, made orthonormal over the volumes so far,
each direction only if enough of it is left, and all of them together no more than one for so many
volumes. At the end of a run this is the whole nuisance, in other coordinates.
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
        kept = np.flatnonzero(energy > LEAST_SHARE)[::-1][:room]
        basis = np.hstack([basis, rest @ directions[:, kept] / np.sqrt(energy[kept])])
    return basis


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
