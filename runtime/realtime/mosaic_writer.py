"""A replayed volume as a Siemens mosaic DICOM, geometry and all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from .csa_header import csa_header
from .dicom_writing import RAS_TO_LPS, axes, decimals, file_bytes, new_dataset, stored
from .volume_writer import WrittenVolume


class MosaicWriter:
    """One mosaic for each volume.

    Parameters
    ----------
    run_key : str
        Names the run; its series get their UIDs from it.
    """

    suffix = ".dcm"

    def __init__(self, run_key: str) -> None:
        self._run_key = run_key

    def parts(self, volume: WrittenVolume) -> list[tuple[str, bytes]]:
        """The one file; errors are those of `encode`."""
        return [(self.suffix, self.encode(volume))]

    def encode(self, volume: WrittenVolume) -> bytes:
        """The whole file.

        Raises
        ------
        InputError
            Axes that are not at right angles, which DICOM cannot say.
        """
        pixels, slope, inter = stored(volume)
        dataset = new_dataset(self._run_key, volume, MRImageStorage)
        dataset.Manufacturer = "SIEMENS"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        _add_geometry(dataset, volume)
        if (slope, inter) != (1.0, 0.0):
            dataset.RescaleSlope, dataset.RescaleIntercept = decimals([slope, inter])
        return file_bytes(dataset, _mosaic(pixels, _side(volume)))


def _side(volume: WrittenVolume) -> int:
    """Tiles along each side of the mosaic."""
    return math.ceil(math.sqrt(volume.data.shape[2]))


def _add_geometry(dataset: Dataset, volume: WrittenVolume) -> None:
    columns, rows, slices = volume.data.shape
    directions, spacing = axes(volume.affine)
    origin = (RAS_TO_LPS @ volume.affine)[:3, 3]
    # the position is that of a picture as wide as the whole mosaic around the same centre
    half = np.array([columns, rows]) * (_side(volume) - 1) / 2
    corner = origin - directions[:, :2] @ (spacing[:2] * half)
    dataset.ImagePositionPatient = decimals(corner)
    dataset.ImageOrientationPatient = decimals(directions[:, :2].T)
    dataset.PixelSpacing = decimals(spacing[[1, 0]])  # between rows, columns
    dataset.SliceThickness = dataset.SpacingBetweenSlices = f"{spacing[2]:.10g}"
    private = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    fields: dict[str, tuple[str, list[object]]] = {
        "NumberOfImagesInMosaic": ("US", [slices]),
        "SliceNormalVector": ("FD", [f"{x:.8f}" for x in directions[:, 2]]),
        "PhaseEncodingDirectionPositive": ("IS", [1]),
    }
    private.add_new(0x08, "CS", "IMAGE NUM 4")
    private.add_new(0x10, "OB", csa_header(fields))
    dataset.InPlanePhaseEncodingDirection = "COL"


def _mosaic(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """(side * rows, side * columns) from (columns, rows, slices); tiles left over are 0."""
    columns, rows, slices = pixels.shape
    tiles = np.zeros((side * side, rows, columns), pixels.dtype)
    tiles[:slices] = pixels.transpose(2, 1, 0)
    return tiles.reshape(side, side, rows, columns).swapaxes(1, 2).reshape(side * rows, -1)
