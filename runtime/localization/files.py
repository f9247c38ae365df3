"""A location as files: the heat map as NIfTI, and pictures of it where they can be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError, MissingExtraError
from ..volume import VolumeSource, load_volume
from .location import Image, Location
from .pictures import draw_glass, draw_slices

HEATMAP = "heatmap.nii.gz"
SLICES = "heatmap.png"
GLASS = "heatmap-glass.png"
NAMES = {"heatmap": HEATMAP, "heatmap_slices": SLICES, "heatmap_glass": GLASS}
"""Keys of the result and the files they stand for."""


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_location` wrote."""

    kinds: tuple[str, ...]
    """Of `NAMES`."""
    degraded: tuple[str, ...]
    """Why a picture is missing."""


def write_location(
    location: Location, folder: Path, background: Image, provenance: Mapping[str, object]
) -> Written:
    """Write heatmap.nii.gz, heatmap.png and heatmap-glass.png into a folder.

    Parameters
    ----------
    location : Location
    folder : Path
        Must exist.
    background : nibabel image
        What the slices lie over.
    provenance : mapping
        For the pictures' metadata.
    """
    location.heat.to_filename(folder / HEATMAP)
    told = {**provenance, "concept": location.concept}
    try:
        draw_slices(location, background, folder / SLICES, told)
        draw_glass(location, folder / GLASS, told)
    except (MissingExtraError, InputError) as exc:
        return Written(("heatmap",), (f"heatmap: no pictures, for {exc}",))
    return Written(tuple(NAMES), ())


def as_image(source: VolumeSource, index: int | None = None) -> Image:
    """One volume with slope and intercept applied, as a nibabel image."""
    import nibabel as nib

    volume = load_volume(source, index)
    data = volume.data.astype(np.float32) * volume.slope + volume.inter
    return nib.Nifti1Image(data.astype(np.float32), volume.affine)
