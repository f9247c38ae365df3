"""A replayed volume as a Siemens mosaic DICOM, geometry and all; it says nothing of any person."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from ..errors import InputError
from .csa_header import csa_header
from .volume_writer import WrittenVolume

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NOON_S = 12 * 3600
"""When replayed runs begin, by the scanner's clock."""


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

    def encode(self, volume: WrittenVolume) -> bytes:
        """The whole file.

        Raises
        ------
        InputError
            Axes that are not at right angles, which DICOM cannot say.
        """
        stored, slope, inter = _stored(volume)
        axes, spacing = _axes(volume.affine)
        dataset = self._identity(volume)
        _add_geometry(dataset, volume, axes, spacing)
        side = math.ceil(math.sqrt(volume.data.shape[2]))
        mosaic = _mosaic(stored, side)
        dataset.Rows, dataset.Columns = mosaic.shape
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit = 15
        dataset.PixelRepresentation = int(stored.dtype.kind == "i")
        if (slope, inter) != (1.0, 0.0):
            dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.10g}", f"{inter:.10g}"
        dataset.PixelData = mosaic.astype("<i2" if stored.dtype.kind == "i" else "<u2").tobytes()
        file = BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        return file.getvalue()

    def _identity(self, volume: WrittenVolume) -> Dataset:
        def uid(*parts: object) -> UID:
            return generate_uid(entropy_srcs=[self._run_key, *map(str, parts)])

        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
        image = uid("image", volume.series, volume.number)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = image
        dataset.StudyInstanceUID = uid("study")
        dataset.SeriesInstanceUID = uid("series", volume.series)
        dataset.FrameOfReferenceUID = uid("frame")
        dataset.PatientName = dataset.PatientID = ""
        dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = "20000101"
        dataset.StudyTime = "120000.000000"
        dataset.AcquisitionTime = _time_of_day(_NOON_S + volume.acquired_s)
        dataset.Modality, dataset.Manufacturer = "MR", "SIEMENS"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        dataset.SeriesNumber = volume.series
        dataset.AcquisitionNumber = dataset.InstanceNumber = volume.number + 1
        dataset.SeriesDescription = dataset.ProtocolName = "replay"
        dataset.ScanningSequence, dataset.SequenceVariant = "EP", "SK"
        dataset.MRAcquisitionType = "2D"
        dataset.RepetitionTime = f"{volume.tr_s * 1e3:.10g}"
        dataset.EchoTime = "30"
        return dataset


def _stored(volume: WrittenVolume) -> tuple[NDArray[Any], float, float]:
    """(X, Y, Z) int16 or uint16 with slope and intercept; real numbers are cut into 65535 steps."""
    data = volume.data
    if data.dtype.kind in "iu":
        low, high = int(data.min()), int(data.max())
        for kind in ("u2", "i2"):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return data.astype(kind, copy=False), volume.slope, volume.inter
    low, high = float(data.min()), float(data.max())
    step = (high - low) / 65535 or 1.0
    steps = np.rint((data.astype(np.float64) - low) / step).astype(np.uint16)
    return steps, volume.slope * step, volume.inter + volume.slope * low


def _axes(affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3, 3) unit directions of the axes as columns, in DICOM's left-posterior-superior frame, and
    their (3,) spacing in mm.
    """
    matrix = (_RAS_TO_LPS @ affine)[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    axes = matrix / spacing
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise InputError("the run's axes are not at right angles, which a mosaic DICOM cannot say")
    return axes, spacing


def _add_geometry(
    dataset: Dataset, volume: WrittenVolume, axes: NDArray[np.float64], spacing: NDArray[np.float64]
) -> None:
    columns, rows, slices = volume.data.shape
    side = math.ceil(math.sqrt(slices))
    origin = (_RAS_TO_LPS @ volume.affine)[:3, 3]
    # the position is that of a picture as wide as the whole mosaic around the same centre
    half = np.array([columns, rows]) * (side - 1) / 2
    corner = origin - axes[:, :2] @ (spacing[:2] * half)
    normal = axes[:, 2]
    dataset.ImagePositionPatient = [f"{x:.10g}" for x in corner]
    dataset.ImageOrientationPatient = [f"{x:.10g}" for x in axes[:, :2].T.ravel()]
    dataset.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"]  # between rows, columns
    dataset.SliceThickness = dataset.SpacingBetweenSlices = f"{spacing[2]:.10g}"
    private = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    fields: dict[str, tuple[str, list[object]]] = {
        "NumberOfImagesInMosaic": ("US", [slices]),
        "SliceNormalVector": ("FD", [f"{x:.8f}" for x in normal]),
        "PhaseEncodingDirectionPositive": ("IS", [1]),
    }
    private.add_new(0x08, "CS", "IMAGE NUM 4")
    private.add_new(0x10, "OB", csa_header(fields))
    dataset.InPlanePhaseEncodingDirection = "COL"


def _mosaic(stored: NDArray[Any], side: int) -> NDArray[Any]:
    """(side * rows, side * columns) from (columns, rows, slices); tiles left over are 0."""
    columns, rows, slices = stored.shape
    tiles = np.zeros((side * side, rows, columns), stored.dtype)
    tiles[:slices] = stored.transpose(2, 1, 0)
    return tiles.reshape(side, side, rows, columns).swapaxes(1, 2).reshape(side * rows, -1)


def _time_of_day(seconds: float) -> str:
    seconds %= 86400
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours:02d}{minutes:02d}{seconds % 60:09.6f}"
