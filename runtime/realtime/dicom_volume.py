"""The bytes of any DICOM file of a run to what they are: whole volumes, or one slice of one."""

from __future__ import annotations

from .dicom_enhanced import enhanced_frames, is_enhanced
from .dicom_file import open_dicom
from .dicom_mosaic import is_mosaic, mosaic_frame
from .dicom_slices import SliceFile, read_slice
from .source import Arrival, IncompleteVolume, UnreadableVolume


def read_dicom(raw: bytes, *, arrived_s: float, first_number: int = 1) -> list[Arrival] | SliceFile:
    """Read one file: Siemens mosaic, enhanced multi-frame, or classic with one slice.

    Parameters
    ----------
    raw : bytes
        A whole DICOM file.
    arrived_s : float
        As in `Frame`.
    first_number : int
        Number of the run's first volume; scanners count from 1.

    Returns
    -------
    found : list of Arrival, or SliceFile
        Frames and their faults, or a slice for `SliceGathering`.

    Raises
    ------
    IncompleteVolume
        The header or the pixels are cut off.
    UnreadableVolume
        No format of these, no geometry, or pixels that nothing here decodes.
    """
    dataset = open_dicom(raw)
    try:
        if is_mosaic(dataset):
            return [mosaic_frame(dataset, arrived_s=arrived_s, first_number=first_number)]
        if is_enhanced(dataset):
            return enhanced_frames(dataset, arrived_s=arrived_s, first_number=first_number)
        return read_slice(dataset, arrived_s=arrived_s, first_number=first_number)
    except (IncompleteVolume, UnreadableVolume):
        raise
    except Exception as exc:  # values are decoded when they are asked for, and may be anything
        raise UnreadableVolume(
            f"a DICOM header with damaged values ({type(exc).__name__})"
        ) from exc
