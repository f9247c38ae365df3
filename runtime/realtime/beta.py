"""What a fit finds out about a trial."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Beta:
    """A trial's activity."""

    trial: int
    values: NDArray[np.float32]
    """(E,) in the units of the volumes, for a regressor of height 1."""
    variance: NDArray[np.float32]
    """(E,) of `values`, by the residuals so far."""
    newest: int
    """Number of the last volume that it knows."""
    volumes: int
    """Volumes with weight."""
    freedom: int
    """Volumes less regressors."""
