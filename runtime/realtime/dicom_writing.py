"""What all replayed DICOM files have in common, whichever scanner they are from.

They are whole files with all that converters look for, and say nothing of any person.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from ..errors import InputError
from .volume_writer import WrittenVolume

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NOON_S = 12 * 3600
"""When replayed runs begin, by the scanner's clock."""
DATE = "20000101"


def new_dataset(run_key: str, volume: WrittenVolume, sop_class: UID, *image: object) -> Dataset:
    """A dataset with the identity of run, series and image, and the timing of its volume.

    Parameters
    ----------
    run_key : str
        Names the run; its series get their UIDs from it.
    volume : WrittenVolume
    sop_class : UID
        Kind of file.
    image : objects
        What tells the volume's files apart, if there are several.
    """

    def uid(*parts: object) -> UID:
        return generate_uid(entropy_srcs=[run_key, *map(str, parts)])

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    instance = uid("image", volume.series, volume.number, *image)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = instance
    dataset.StudyInstanceUID = uid("study")
    dataset.SeriesInstanceUID = uid("series", volume.series)
    dataset.FrameOfReferenceUID = uid("frame")
    dataset.PatientName = dataset.PatientID = ""
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = DATE
    dataset.StudyTime = "120000.000000"
    dataset.AcquisitionTime = time_of_day(volume.acquired_s)
    dataset.Modality = "MR"
    dataset.SeriesNumber = volume.series
    dataset.AcquisitionNumber = dataset.InstanceNumber = volume.number + 1
    dataset.SeriesDescription = dataset.ProtocolName = "replay"
    dataset.ScanningSequence, dataset.SequenceVariant = "EP", "SK"
    dataset.MRAcquisitionType = "2D"
    dataset.RepetitionTime = f"{volume.tr_s * 1e3:.10g}"
    dataset.EchoTime = "30"
    return dataset


def time_of_day(acquired_s: float) -> str:
    """Time by the scanner's clock, as DICOM writes it, so long after the run began."""
    seconds = (_NOON_S + acquired_s) % 86400
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours:02d}{minutes:02d}{seconds % 60:09.6f}"


def stored(volume: WrittenVolume) -> tuple[NDArray[Any], float, float]:
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


def axes(affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3, 3) unit directions of the axes as columns, in DICOM's left-posterior-superior frame, and
    their (3,) spacing in mm.

    Raises
    ------
    InputError
        Axes that are not at right angles, which DICOM cannot say.
    """
    matrix = (RAS_TO_LPS @ affine)[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    directions = matrix / spacing
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        raise InputError("the run's axes are not at right angles, which DICOM cannot say")
    return directions, spacing


def decimals(values: Any) -> list[str]:
    """Numbers as DICOM's decimal strings."""
    return [f"{value:.10g}" for value in np.ravel(values)]


def file_bytes(dataset: Dataset, pixels: NDArray[Any]) -> bytes:
    """The whole file with (rows, columns) or (frames, rows, columns) 16-bit pixels."""
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.astype("<i2" if pixels.dtype.kind == "i" else "<u2").tobytes()
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
