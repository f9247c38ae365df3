"""Classic DICOM, one file a slice, as GE, Siemens XA and Philips can export it: one file's part.

Which volume a slice belongs to is counted differently by each vendor, and how many slices a volume
has is said by some of them only. `SliceGathering` makes volumes of what is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .dicom_file import series_of, stored_pixels, time_of_day_s
from .dicom_geometry import NoVolume, Slice, make_slice
from .source import UnreadableVolume

_GE_LOCATIONS = (0x0021, 0x104F)
_PHILIPS_SLICES = (0x2001, 0x1018)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceFile:
    """One slice of a volume."""

    slice: Slice
    number: int
    """Which volume, counted from 0."""
    series: str
    slices: int | None
    """How many slices the volume has, None if the file does not say."""
    tr_s: float | None
    arrived_s: float
    acquired_s: float | None


def read_slice(dataset: Any, *, arrived_s: float, first_number: int = 1) -> SliceFile:
    """Read one slice.

    Parameters
    ----------
    dataset : pydicom.Dataset
        As `open_dicom` gives it.
    arrived_s : float
        As in `Frame`.
    first_number : int
        Number of the run's first volume; scanners count from 1.

    Raises
    ------
    IncompleteVolume
        The pixels are cut off.
    UnreadableVolume
        No place, no time, no series, or pixels that nothing here decodes.
    """
    # each echo, and magnitude and phase, are series of their own: one of them is the run's
    kind = [str(dataset.get("EchoTime")), *(dataset.get("ImageType") or [])[2:3]]
    series = series_of(dataset, " ".join(kind))
    slices = _slices(dataset)
    number = _number(dataset, slices)
    if number is None or series is None:
        raise UnreadableVolume("a DICOM without temporal position, acquisition number or series")
    pixels = stored_pixels(dataset, number - first_number, series)
    if len(pixels) != 1:
        raise UnreadableVolume(f"a DICOM of {len(pixels)} pictures without their places")
    try:
        one = make_slice(
            pixels[0],
            dataset.get("ImagePositionPatient"),
            dataset.get("ImageOrientationPatient"),
            dataset.get("PixelSpacing"),
            dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness"),
            (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")),
        )
    except NoVolume as exc:
        raise UnreadableVolume(str(exc)) from exc
    repetition_ms = dataset.get("RepetitionTime")
    # GE and Philips write the time of the whole series into each of its files
    clock = dataset.get("AcquisitionTime") if _maker(dataset) == "siemens" else None
    return SliceFile(
        slice=one,
        number=number - first_number,
        series=series,
        slices=slices,
        tr_s=float(repetition_ms) / 1e3 if repetition_ms else None,
        arrived_s=arrived_s,
        acquired_s=time_of_day_s(clock),
    )


def _maker(dataset: Any) -> str:
    stated = str(dataset.get("Manufacturer", "")).lower()
    return next((name for name in ("siemens", "philips", "ge ") if name in f"{stated} "), "")


def _slices(dataset: Any) -> int | None:
    """Slices of a volume, where a header tells them."""
    for tag, owner in ((_GE_LOCATIONS, "GEMS"), (_PHILIPS_SLICES, "Philips")):
        creator = (tag[0], 0x0010)
        if tag in dataset and creator in dataset and str(dataset[creator].value).startswith(owner):
            return _count(dataset[tag].value)
    return _count(dataset.get("NumberOfSlices"))


def _number(dataset: Any, slices: int | None) -> int | None:
    """The volume's number as the scanner counts: the first count that has got beyond 1.

    Philips numbers scans, not volumes, as acquisitions, and GE leaves them at 1; where GE does not
    tell the temporal position, its slices are counted through the run, volume by volume.
    """
    maker = _maker(dataset)
    temporal = _count(dataset.get("TemporalPositionIdentifier"))
    acquisition = _count(dataset.get("AcquisitionNumber"))
    instance = _count(dataset.get("InstanceNumber"))
    counts = {
        "siemens": [acquisition, temporal],
        "philips": [temporal],
        "ge ": [temporal or (instance and slices and (instance - 1) // slices + 1)],
    }.get(maker, [temporal, acquisition])
    known = [count for count in counts if count]
    return next((count for count in known if count > 1), known[0] if known else None)


def _count(value: Any) -> int | None:
    """A positive whole number, None for anything else; private values may come as bare bytes."""
    if isinstance(value, bytes):
        value = int.from_bytes(value, "little") if len(value) in (2, 4) else None
    try:
        count = int(value)
    except (TypeError, ValueError):
        return None
    return count if count > 0 else None
