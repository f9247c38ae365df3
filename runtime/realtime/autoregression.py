"""Prewhitening of noise that follows itself, from sums over volumes alone.

Where e_t = rho e_(t-1) + white noise, least squares on x_t - rho x_(t-1) is best. Its sums are
polynomials in rho of those over volumes and over neighbours, so that every element may have a rho
of its own, found late and changed at will, and no volume is looked at twice. At a missing volume
the residual counts as 0.

rho comes from the residuals of ordinary least squares (Yule-Walker), in steps of 0.01, as in
nilearn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .basis import TrialBasis
from .sums import Grams, Projected

STEPS = 100
"""Steps of rho in 0..1."""
MOST = 0.95
"""Largest rho, either way: beyond it the noise has no mean to speak of."""


@dataclass(frozen=True, slots=True, eq=False)
class Prewhitened:
    """A trial's estimate for every rho.

    Parameters of the table run over rho = -0.95, -0.94 .. 0.95.
    """

    weight: NDArray[np.float32]
    """(p, rhos) of the whitened products in the beta."""
    variance: NDArray[np.float32]
    """(rhos,) of a beta where the noise has variance 1."""
    neighbours: NDArray[np.float32]
    """(p, p) F' X'X-of-neighbours F."""
    last: NDArray[np.float32]
    """(p,) F' x of the newest volume."""
    volumes: int
    pairs: int

    @classmethod
    def prepare(cls, basis: TrialBasis, grams: Grams) -> Prewhitened:
        """Solve for every rho: p^3 for each, independent of the elements."""
        combinations = basis.combinations
        neighbours = combinations.T @ grams.neighbours @ combinations
        last = combinations.T @ grams.last
        steps = round(MOST * STEPS)
        rho = np.arange(-steps, steps + 1)[:, None, None] / STEPS
        unit = np.eye(len(last))
        whitened = unit - rho * neighbours + rho**2 * (unit - np.outer(last, last))
        contrast = unit[-1] / basis.length
        weight = np.linalg.solve(
            whitened, np.broadcast_to(contrast[:, None], (len(rho), len(last), 1))
        )
        weight = weight[..., 0]  # (rhos, p)
        return cls(
            np.ascontiguousarray(weight.T, np.float32),
            (weight @ contrast).astype(np.float32),
            neighbours.astype(np.float32),
            last.astype(np.float32),
            grams.volumes,
            grams.pairs,
        )

    def estimate(self, block: Projected) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Beta (L,) and variance (L,) of a block's elements."""
        now, beside, beside_squares = block.now, block.neighbours, block.neighbour_squares
        assert beside is not None
        assert beside_squares is not None
        # sums over the residuals of ordinary least squares: squares, and twice neighbours' products
        squares = np.maximum(block.squares - np.einsum("pl,pl->l", now, now), 0)
        products = beside_squares + np.einsum("pl,pl->l", now, self.neighbours @ now - 2 * beside)
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = np.nan_to_num(0.5 * products / squares * (self.volumes / max(self.pairs, 1)))
        step = np.trunc(np.clip(rho, -MOST, MOST) * STEPS).astype(np.int64)
        rho = (step / STEPS).astype(np.float32)
        at = step + round(MOST * STEPS)
        ends = now - self.last[:, None] * block.last  # the newest volume has no successor
        whitened = now - rho * beside + rho**2 * ends
        beta = np.einsum("pl,pl->l", np.take(self.weight, at, axis=1), whitened)
        residual = block.last - self.last @ now
        noise = squares - rho * products + rho**2 * (squares - residual**2)
        freedom = self.volumes - len(self.last)
        variance = np.maximum(noise, 0) / freedom * self.variance[at]
        return beta.astype(np.float32), variance.astype(np.float32)
