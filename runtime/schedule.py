"""A denoising schedule as numbers, so that the runtime needs no scheduler library.

Every sampler that is used here is linear in what it has met on its way: its start s, the U-Net's
outputs o_1 .. o_n, and fresh noise. So all that a schedule says is in three sets of coefficients:

    input_k = inputs[k] . met        what the U-Net sees at step k
    guess_k = guesses[k] . met       the clean latent as guessed after step k
    result  = final . met            the clean latent

with met = (s, o_1 .. o_n), followed by (noise_1 .. noise_n) where the sampler draws noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """A sampler at one number of steps."""

    timesteps: Floats
    """(n,) what the U-Net is told."""
    inputs: Floats
    """(n, 1 + n) or (n, 1 + 2 n) coefficients."""
    guesses: Floats
    """The same shape."""
    final: Floats
    """(1 + n,) or (1 + 2 n,)."""

    @property
    def steps(self) -> int:
        """Evaluations of the U-Net, n."""
        return len(self.timesteps)

    @property
    def draws_noise(self) -> bool:
        """Whether a normal sample is drawn after every step but the last."""
        return len(self.final) > 1 + self.steps

    def pack(self) -> Floats:
        """One array (2 n + 1, 1 + width): inputs, guesses, final; timesteps lead the inputs."""
        rows = np.concatenate([self.inputs, self.guesses, self.final[None]])
        lead = np.zeros((len(rows), 1), np.float32)
        lead[: self.steps, 0] = self.timesteps
        return np.concatenate([lead, rows], axis=1, dtype=np.float32)

    @classmethod
    def unpack(cls, packed: Floats) -> Schedule:
        """The inverse of `pack`; ValueError for an array of another shape."""
        rows, columns = packed.shape if packed.ndim == 2 else (0, 0)
        steps = rows // 2
        if rows % 2 == 0 or columns not in (2 + steps, 2 + 2 * steps):
            raise ValueError(f"a schedule of {steps} steps cannot have the shape {packed.shape}")
        return cls(
            timesteps=packed[:steps, 0],
            inputs=packed[:steps, 1:],
            guesses=packed[steps:-1, 1:],
            final=packed[-1, 1:],
        )


def time_rows(
    times: Floats, embeddings: Floats, schedules: Mapping[str, Schedule]
) -> dict[float, Floats]:
    """What the U-Net is told at each timestep.

    Parameters
    ----------
    times : (T,) float32
        Timesteps.
    embeddings : (T, E) float32
        The U-Net's embedding of each.
    schedules : mapping
        All that are to run.

    Returns
    -------
    rows : dict
        (1, E) float32 by timestep.

    Raises
    ------
    ValueError
        Another number of embeddings, or none for a timestep of a schedule.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(times):
        raise ValueError(f"{len(times)} timesteps have embeddings of shape {embeddings.shape}")
    rows = {float(time): row[None] for time, row in zip(times, embeddings, strict=True)}
    for name, schedule in schedules.items():
        for time in schedule.timesteps.tolist():
            if time not in rows:
                raise ValueError(f"timestep {time:g} of {name} has no embedding")
    return rows
