"""One file of a watched folder to what it holds: by its name, and by how it begins."""

from __future__ import annotations

import re
from pathlib import Path

from .dicom_file import is_dicom
from .dicom_slices import SliceFile
from .dicom_volume import read_dicom
from .frame import series_identity
from .nifti_volume import read_nifti
from .par_rec import is_par, is_rec, partner, read_par_rec
from .source import Arrival, IncompleteVolume, UnreadableVolume

_NIFTI = re.compile(r"(?P<series>.*?)(?P<number>\d+)\.nii(\.gz)?", re.IGNORECASE)
_MAX_FILE_BYTES = 1 << 30


def spokesman(name: str) -> str:
    """The file whose name stands for a volume's files: the PAR of a REC, else the file itself."""
    return partner(name) if is_rec(name) else name


def members(name: str) -> tuple[str, ...]:
    """Names of the files that a spokesman stands for."""
    return (name, partner(name)) if is_par(name) else (name,)


def read_file(
    folder: Path, name: str, *, arrived_s: float, first_number: int
) -> list[Arrival] | SliceFile:
    """Read a file, and those that it stands for.

    Parameters
    ----------
    folder : Path
    name : str
        As `spokesman` gives it.
    arrived_s : float
        As in `Frame`.
    first_number : int
        Number of the run's first volume.

    Returns
    -------
    found : list of Arrival, or SliceFile
        Frames with their faults, or a slice for `SliceGathering`.

    Raises
    ------
    IncompleteVolume
        More bytes are to come.
    UnreadableVolume
        No format that is read here.
    OSError
        The file cannot be read.
    """
    raw = _bytes(folder / name)
    if nifti := _NIFTI.fullmatch(name):
        number, series = int(nifti["number"]) - first_number, series_identity(nifti["series"])
        return [read_nifti(raw, number=number, series=series, arrived_s=arrived_s)]
    if name.lower().endswith((".nii", ".nii.gz")):
        raise UnreadableVolume("a NIfTI file without a volume's number at the end of its name")
    if is_par(name):
        rec = folder / partner(name)
        pixels = _bytes(rec) if rec.is_file() else b""
        return [
            read_par_rec(raw, pixels, name=name, arrived_s=arrived_s, first_number=first_number)
        ]
    if len(raw) < 132:
        raise IncompleteVolume(f"{len(raw)} bytes")
    if not is_dicom(raw):
        raise UnreadableVolume("neither NIfTI nor DICOM nor PAR/REC")
    return read_dicom(raw, arrived_s=arrived_s, first_number=first_number)


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(_MAX_FILE_BYTES + 1)
    if len(raw) > _MAX_FILE_BYTES:
        raise UnreadableVolume(f"more than {_MAX_FILE_BYTES} bytes")
    return raw
