"""The bytes of one Siemens mosaic DICOM to one frame.

A mosaic holds a volume's slices as tiles of one picture. How many tiles there are and which way
the slices go stands in a private header, which nibabel reads.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dicom_file import open_dicom, series_of, stored_pixels, time_of_day_s
from .frame import Frame
from .source import IncompleteVolume, UnreadableVolume

with warnings.catch_warnings():  # nibabel calls its DICOM readers experimental at import
    warnings.simplefilter("ignore")
    from nibabel.nicom.dicomwrappers import MosaicWrapper

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_mosaic(dataset: Any) -> bool:
    """Whether a file's header says that it is a mosaic."""
    return "MOSAIC" in (dataset.get("ImageType") or [])


def read_mosaic(raw: bytes, *, arrived_s: float, first_number: int = 1) -> Frame:
    """Read one volume.

    Parameters
    ----------
    raw : bytes
        A whole DICOM file.
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
        Not a Siemens mosaic, pixels that nothing here decodes, or a header without geometry.
    """
    dataset = open_dicom(raw)
    try:
        return mosaic_frame(dataset, arrived_s=arrived_s, first_number=first_number)
    except (IncompleteVolume, UnreadableVolume):
        raise
    except Exception as exc:  # values are decoded when they are asked for, and may be anything
        raise UnreadableVolume(
            f"a DICOM header with damaged values ({type(exc).__name__})"
        ) from exc


def mosaic_frame(dataset: Any, *, arrived_s: float, first_number: int = 1) -> Frame:
    """The volume of a mosaic whose header is parsed; all else as `read_mosaic`."""
    if not is_mosaic(dataset):
        raise UnreadableVolume("a DICOM that is no Siemens mosaic")
    number, series = _number(dataset), series_of(dataset)
    number = None if number is None else number - first_number
    pixels = stored_pixels(dataset, number, series)[0]
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
        acquired_s=time_of_day_s(dataset.get("AcquisitionTime")),
    )


def _number(dataset: Any) -> int | None:
    """The acquisition number; in a mosaic series the instance number is the same."""
    number = dataset.get("AcquisitionNumber") or dataset.get("InstanceNumber")
    return None if number is None else int(number)


def _volume(mosaic: NDArray[Any], rows: int, columns: int, slices: int) -> NDArray[Any]:
    """Tiles to slices: the one copy of the way. (columns, rows, slices), first index fastest."""
    side = mosaic.shape[0] // rows
    if slices > side * side or mosaic.shape != (side * rows, side * columns):
        raise UnreadableVolume(f"{slices} tiles do not fit into a mosaic of {mosaic.shape} pixels")
    tiles = mosaic.reshape(side, rows, side, columns).swapaxes(1, 2)
    return tiles.reshape(side * side, rows, columns)[:slices].transpose(2, 1, 0)
