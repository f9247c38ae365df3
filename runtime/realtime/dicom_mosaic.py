"""The bytes of one Siemens mosaic DICOM to one frame.

A mosaic holds a volume's slices as tiles of one picture. How many tiles there are and which way
the slices go stands in a private header, which nibabel reads. Only the tags listed here are kept,
so no patient field gets any further than the file's bytes.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .frame import Frame, series_identity
from .source import IncompleteVolume, UnreadableVolume

with warnings.catch_warnings():  # nibabel calls its DICOM readers experimental at import
    warnings.simplefilter("ignore")
    from nibabel.nicom.dicomwrappers import MosaicWrapper

from pydicom import config, dcmread

# complaints about a value quote it in the log, and it may be a UID
config.settings.reading_validation_mode = config.IGNORE

_TAGS: list[Any] = [
    "ImageType",
    "AcquisitionTime",
    "SliceThickness",
    "RepetitionTime",
    "SpacingBetweenSlices",
    "SeriesInstanceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    (0x0029, 0x0010),
    (0x0029, 0x1010),
    "PixelData",
]
"""The last two but one are the private block's creator and Siemens' image header."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_dicom(raw: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does."""
    return raw[128:132] == b"DICM"


def read_mosaic(raw: bytes, *, arrived_s: float, first_number: int = 1) -> Frame:
    """Read one volume.

    Parameters
    ----------
    raw : bytes
        A whole DICOM file with uncompressed pixels.
    arrived_s : float
        As in `Frame`.
    first_number : int
        Acquisition number of the run's first volume; scanners count from 1.

    Returns
    -------
    frame : Frame
        `data` is (columns, rows, slices) in the stored integer type, first index fastest.

    Raises
    ------
    IncompleteVolume
        The header or the pixels are cut off.
    UnreadableVolume
        Not a Siemens mosaic, compressed pixels, or a header without geometry.
    """
    if not is_dicom(raw):
        raise (
            IncompleteVolume("no DICOM header") if len(raw) < 132 else UnreadableVolume("no DICOM")
        )
    dataset = _dataset(raw)
    try:
        return _frame(dataset, arrived_s, first_number)
    except (IncompleteVolume, UnreadableVolume):
        raise
    except Exception as exc:  # values are decoded when they are asked for, and may be anything
        raise UnreadableVolume(
            f"a DICOM header with damaged values ({type(exc).__name__})"
        ) from exc


def _frame(dataset: Any, arrived_s: float, first_number: int) -> Frame:
    number, series = _number(dataset), _series(dataset)
    number = None if number is None else number - first_number
    pixels = _pixels(dataset, number, series)
    if number is None or series is None:
        raise UnreadableVolume("a DICOM without acquisition number or series")
    try:
        wrapper = MosaicWrapper(dataset)
        rows, columns, slices = (int(n) for n in wrapper.image_shape or ())
        affine = _LPS_TO_RAS @ np.asarray(wrapper.affine, np.float64)
    except Exception as exc:  # whatever a parser makes of a header without what it looks for
        said = type(exc).__name__
        raise UnreadableVolume(f"no geometry in its Siemens header ({said})") from exc
    repetition_ms = dataset.get("RepetitionTime")
    return Frame(
        number=number,
        data=_volume(pixels, rows, columns, slices),
        affine=affine[:, [1, 0, 2, 3]],  # nibabel counts rows first
        slope=float(dataset.get("RescaleSlope", 1.0)),
        inter=float(dataset.get("RescaleIntercept", 0.0)),
        tr_s=float(repetition_ms) / 1e3 if repetition_ms else None,
        series=series,
        arrived_s=arrived_s,
        acquired_s=_time_of_day_s(dataset.get("AcquisitionTime")),
    )


def _dataset(raw: bytes) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that are none of our tags
            dataset = dcmread(BytesIO(raw), specific_tags=_TAGS)
            syntax = dataset.file_meta.TransferSyntaxUID
            compressed = syntax.is_compressed
            kinds = list(dataset.get("ImageType", []))
    except Exception as exc:  # pydicom fails in many ways on a file that ends too early
        raise IncompleteVolume(f"{len(raw)} bytes, a DICOM header that does not end") from exc
    if "PixelData" not in dataset:
        raise IncompleteVolume(f"{len(raw)} bytes, a DICOM without its pixels")
    if compressed:
        raise UnreadableVolume(
            f"its pixels are compressed ({syntax.name}); export them uncompressed"
        )
    if "MOSAIC" not in kinds:
        raise UnreadableVolume("a DICOM that is no Siemens mosaic")
    return dataset


def _number(dataset: Any) -> int | None:
    """The acquisition number; in a mosaic series the instance number is the same."""
    number = dataset.get("AcquisitionNumber") or dataset.get("InstanceNumber")
    return None if number is None else int(number)


def _series(dataset: Any) -> str | None:
    uid = dataset.get("SeriesInstanceUID")
    number = dataset.get("SeriesNumber")
    return None if not uid else series_identity(str(uid), None if number is None else int(number))


def _pixels(dataset: Any, number: int | None, series: str | None) -> NDArray[Any]:
    """(rows, columns) of the whole mosaic, a view of the file's bytes."""
    if dataset.get("BitsAllocated") != 16 or dataset.get("SamplesPerPixel", 1) != 1:
        raise UnreadableVolume(f"has {dataset.get('BitsAllocated')} bits a pixel, not 16")
    swapped = not dataset.file_meta.TransferSyntaxUID.is_little_endian
    dtype = np.dtype("i2" if dataset.get("PixelRepresentation") else "u2")
    shape = int(dataset.Rows), int(dataset.Columns)
    wanted = shape[0] * shape[1] * dtype.itemsize
    stored = dataset.get("PixelData") or b""
    if len(stored) < wanted:
        raise IncompleteVolume(f"{len(stored)} of {wanted} bytes of pixels", number, series)
    pixels = np.frombuffer(stored, dtype.newbyteorder(">" if swapped else "<"), shape[0] * shape[1])
    return pixels.reshape(shape).astype(dtype, copy=False)


def _volume(mosaic: NDArray[Any], rows: int, columns: int, slices: int) -> NDArray[Any]:
    """Tiles to slices: the one copy of the way. (columns, rows, slices), first index fastest."""
    side = mosaic.shape[0] // rows
    if slices > side * side or mosaic.shape != (side * rows, side * columns):
        raise UnreadableVolume(f"{slices} tiles do not fit into a mosaic of {mosaic.shape} pixels")
    tiles = mosaic.reshape(side, rows, side, columns).swapaxes(1, 2)
    return tiles.reshape(side * side, rows, columns)[:slices].transpose(2, 1, 0)


def _time_of_day_s(stated: Any) -> float | None:
    """Seconds since midnight of a DICOM time, HHMMSS.FFFFFF."""
    try:
        clock = f"{stated:>06}" if stated else ""
        return int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + float(clock[4:])
    except ValueError:
        return None
