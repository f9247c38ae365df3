"""The bytes of a DICOM file to the few header fields that are needed, and its pixels.

Only the tags listed here are kept, so no patient field gets any further than the file's bytes.
The functional groups of an enhanced file are kept whole while it is read; those who read them ask
for place, time and scale and nothing else.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.pixels.decoders.base import get_decoder

from .frame import series_identity
from .source import IncompleteVolume, UnreadableVolume

# complaints about a value quote it in the log, and it may be a UID
config.settings.reading_validation_mode = config.IGNORE

_TAGS: list[Any] = [
    "ImageType",
    "AcquisitionTime",
    "Manufacturer",
    "SliceThickness",
    "RepetitionTime",
    "EchoTime",
    "SpacingBetweenSlices",
    "SeriesInstanceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "TemporalPositionIdentifier",
    "DimensionIndexSequence",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "NumberOfSlices",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    (0x0021, 0x0010),  # GE's private block: slices of a volume
    (0x0021, 0x104F),
    (0x0029, 0x0010),  # Siemens': the image header
    (0x0029, 0x1010),
    (0x2001, 0x0010),  # Philips': slices of a volume
    (0x2001, 0x1018),
    "PixelData",
]
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_BYTES = 1024
"""Within so many bytes after the preamble a file names its transfer syntax."""
_MAX_BYTES = 1 << 30
"""No file of a run is larger; a damaged header must not make us ask for more memory."""
_PACKAGES = {
    "JPEG-LS": "pyjpegls",
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
    "RLE": "pylibjpeg pylibjpeg-rle",
}
"""What decodes which family of transfer syntaxes, the most particular name first."""


def is_dicom(raw: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does."""
    return raw[128:132] == b"DICM"


def open_dicom(raw: bytes) -> Any:
    """Parse a file's header.

    Parameters
    ----------
    raw : bytes
        A whole DICOM file.

    Returns
    -------
    dataset : pydicom.Dataset
        The tags that are needed, and no others.

    Raises
    ------
    IncompleteVolume
        The header is cut off, or there are no pixels.
    UnreadableVolume
        Not DICOM, or packed as a whole.
    """
    if not is_dicom(raw):
        raise (
            IncompleteVolume("no DICOM header") if len(raw) < 132 else UnreadableVolume("no DICOM")
        )
    if _DEFLATED in raw[132 : 132 + _META_BYTES]:  # how large it would get is not said anywhere
        raise UnreadableVolume("a deflated DICOM; export it uncompressed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that are none of our tags
            dataset = dcmread(BytesIO(raw), specific_tags=_TAGS)
            str(dataset.file_meta.TransferSyntaxUID.is_compressed)
    except Exception as exc:  # pydicom fails in many ways on a file that ends too early
        raise IncompleteVolume(f"{len(raw)} bytes, a DICOM header that does not end") from exc
    if "PixelData" not in dataset:
        raise IncompleteVolume(f"{len(raw)} bytes, a DICOM without its pixels")
    return dataset


def series_of(dataset: Any, kind: str = "") -> str | None:
    """Identity of the series, None if the file does not say.

    Parameters
    ----------
    dataset : pydicom.Dataset
    kind : str
        What tells pictures of one series apart, such as the echo.
    """
    uid = dataset.get("SeriesInstanceUID")
    number = dataset.get("SeriesNumber")
    key = f"{uid} {kind}" if kind else str(uid)
    return None if not uid else series_identity(key, None if number is None else int(number))


def stored_pixels(dataset: Any, number: int | None, series: str | None) -> NDArray[Any]:
    """Pixels as stored, decompressed if a decoder for them is installed.

    Parameters
    ----------
    dataset : pydicom.Dataset
        As `open_dicom` gives it.
    number, series
        For `IncompleteVolume` to say, as far as they are known.

    Returns
    -------
    pixels : (frames, rows, columns) int16 or uint16
        Native byte order; a view of the file's bytes if they are plain and native.

    Raises
    ------
    IncompleteVolume
        Fewer bytes than the header promises.
    UnreadableVolume
        Other than 16 bits a pixel, or compressed and nothing here decodes it.
    """
    if dataset.get("BitsAllocated") != 16 or dataset.get("SamplesPerPixel", 1) != 1:
        raise UnreadableVolume(f"has {dataset.get('BitsAllocated')} bits a pixel, not 16")
    dtype = np.dtype("i2" if dataset.get("PixelRepresentation") else "u2")
    shape = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    count = shape[0] * shape[1] * shape[2]
    wanted = count * dtype.itemsize
    if wanted > _MAX_BYTES:
        raise UnreadableVolume(f"promises {wanted} bytes, more than any volume has")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        return _decoded(dataset, syntax).reshape(shape).astype(dtype, copy=False)
    stored = dataset.get("PixelData") or b""
    if len(stored) < wanted:
        raise IncompleteVolume(f"{len(stored)} of {wanted} bytes of pixels", number, series)
    order = "<" if syntax.is_little_endian else ">"
    pixels = np.frombuffer(stored, dtype.newbyteorder(order), count)
    return pixels.reshape(shape).astype(dtype, copy=False)


def _decoded(dataset: Any, syntax: Any) -> NDArray[Any]:
    name = f"its pixels are compressed ({syntax.name})"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as exc:
        raise UnreadableVolume(f"{name}; export them uncompressed") from exc
    if not decoder.is_available:
        package = next(p for family, p in _PACKAGES.items() if family in syntax.name)
        raise UnreadableVolume(
            f"{name} and no decoder for them is installed; 'pip install {package}', or export "
            "them uncompressed"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decoder.as_array(dataset, raw=True)[0]
    except Exception as exc:  # whatever a decoder makes of damaged bytes
        raise UnreadableVolume(f"{name} and damaged; export them uncompressed") from exc


def time_of_day_s(stated: Any) -> float | None:
    """Seconds since midnight of a DICOM time, HHMMSS.FFFFFF, None if it is none."""
    try:
        clock = f"{stated:>06}" if stated else ""
        return int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + float(clock[4:])
    except ValueError:
        return None
