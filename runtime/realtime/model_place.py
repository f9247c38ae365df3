"""Where the model grid lies in the world of a run's reference volume; found once for a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..preprocess import Preprocessor
from ..volume import Volume, load_volume
from .registration import align_reference
from .transforms import Grid, read_transform

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """How the model's place is found: as the bundle maps volumes, if nothing else is said."""

    transform: Path | None = None
    """From the bundle's image to the run's reference, as ITK, FSL or AFNI wrote it."""
    model_image: Path | None = None
    """An image in the bundle's space; alone, the run's reference is registered to it."""


def model_to_reference(
    reference: Volume, preprocessor: Preprocessor, model_affine: Matrix, placing: Placing
) -> Matrix:
    """Voxels of the model grid to the world of the run's reference.

    Parameters
    ----------
    reference : Volume
        The run's.
    preprocessor : Preprocessor
        The bundle's; knows how it maps volumes.
    model_affine : (4, 4) float64
        Voxels of the model grid to the bundle's world.
    placing : Placing

    Returns
    -------
    matrix : (4, 4) float64

    Raises
    ------
    InputError
        A transform or an image that cannot be used, or a reference that does not match.
    """
    image = None if placing.model_image is None else load_volume(placing.model_image)
    if placing.transform is not None:
        grid = None if image is None else _grid(image)
        between = read_transform(placing.transform, reference=grid, moving=_grid(reference))
        return between @ model_affine
    if image is not None:
        return align_reference(reference, image).matrix @ model_affine
    return reference.affine @ preprocessor.model_to_source(reference)


def _grid(volume: Volume) -> Grid:
    x, y, z = volume.data.shape
    return Grid((x, y, z), volume.affine)
