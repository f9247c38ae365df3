"""The betas that a run kept, brought back to the model grid and placed in the world of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..realtime.run_folder import BETAS, GRID
from .story import Attempt, Story

Floats = NDArray[np.float32]


class Betas:
    """Betas of one run.

    Parameters
    ----------
    story : Story
    shape : (3,) int
        Of the model grid.
    voxels : (E, 3) int
        Where each element is.
    """

    def __init__(
        self, story: Story, shape: tuple[int, int, int], voxels: NDArray[np.integer[Any]]
    ) -> None:
        self._story = story
        self.shape = shape
        self._where = tuple(voxels.T.astype(np.intp))

    @classmethod
    def of(cls, story: Story) -> Betas:
        """The betas of a run.

        Raises
        ------
        InputError
            It kept none, or where they are is damaged.
        """
        path: Path = story.folder / BETAS / GRID
        try:
            with np.load(path, allow_pickle=False) as held:
                x, y, z = (int(size) for size in held["shape"])
                return cls(story, (x, y, z), held["voxels"])
        except FileNotFoundError as exc:
            raise InputError(
                f"{story.folder} holds no {BETAS}/{GRID}: the run kept no betas; watch it again"
            ) from exc
        except (OSError, ValueError, KeyError) as exc:
            raise InputError(f"{path} is damaged ({exc}); restore it") from exc

    def read(self, attempt: int, trial: int, revision: int) -> tuple[Floats, Floats]:
        """Values and variance of an answer's beta, (E,) float32 each.

        Raises
        ------
        InputError
            There is none, or it is not of this grid.
        """
        both = self._story.beta(attempt, trial, revision)
        expected = (2, len(self._where[0]))
        if both is None or both.shape != expected:
            found = "is not there" if both is None else f"has shape {both.shape}"
            raise InputError(
                f"the beta of trial {trial}, revision {revision} {found}; expected {expected}"
            )
        return both[0], both[1]

    def grid(self, values: Floats) -> Floats:
        """(X, Y, Z) float32 on the model grid, 0 where the model does not read."""
        out = np.zeros(self.shape, np.float32)
        out[self._where] = values
        return out

    def region(self) -> Floats:
        """(X, Y, Z) float32, 1 where the model reads."""
        return self.grid(np.ones(len(self._where[0]), np.float32))

    def image(self, data: Floats, attempt: Attempt) -> Any:
        """A nibabel image of (X, Y, Z) or (X, Y, Z, K) float32 in the world of the run.

        Raises
        ------
        InputError
            The journal does not say where the model lies.
        """
        if attempt.model_to_world is None:
            raise InputError(
                f"the journal of {self._story.folder} does not say where the model lies in the "
                "run; watch it again"
            )
        image: Any = nib.Nifti1Image(data, attempt.model_to_world)
        image.header.set_xyzt_units("mm", "sec" if data.ndim == 4 else None)
        return image
