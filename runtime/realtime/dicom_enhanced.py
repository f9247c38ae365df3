"""Enhanced multi-frame DICOM, as Siemens XA and Philips export it, to frames of the run.

One file holds one volume or several. Place, time and scale of each picture stand in its functional
groups, or in those that all pictures share; their order in the file means nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .dicom_file import series_of, stored_pixels, time_of_day_s
from .dicom_geometry import NoVolume, Slice, make_slice, stack_slices
from .frame import Frame
from .source import Arrival, Fault, FaultKind, UnreadableVolume

_TEMPORAL_INDEX = 0x00209128
_NO_PIXELS = np.empty((0, 0))


def is_enhanced(dataset: Any) -> bool:
    """Whether a file's header has functional groups."""
    return "PerFrameFunctionalGroupsSequence" in dataset


def enhanced_frames(dataset: Any, *, arrived_s: float, first_number: int = 1) -> list[Arrival]:
    """Read all volumes of a file.

    Parameters
    ----------
    dataset : pydicom.Dataset
        As `open_dicom` gives it.
    arrived_s : float
        As in `Frame`.
    first_number : int
        Number of the run's first volume; scanners count from 1.

    Returns
    -------
    arrivals : list
        A frame for each volume, by number; a fault `short` in place of one that lacks slices
        between others. Slices that lack at its end make a smaller frame.

    Raises
    ------
    IncompleteVolume
        The pixels are cut off.
    UnreadableVolume
        No geometry, several pictures of one place and time, or pixels that nothing here decodes.
    """
    pictures = _Pictures(dataset)
    series = series_of(dataset)
    if series is None:
        raise UnreadableVolume("a DICOM without series")
    only = pictures.file_number(dataset)
    groups = pictures.groups()
    lone = len(groups) == 1
    numbers = {key: (only if lone else key) - first_number for key in groups}
    pixels = stored_pixels(dataset, numbers[next(iter(groups))] if lone else None, series)
    arrivals: list[Arrival] = []
    for key, members in sorted(groups.items()):
        slices = [pictures.slice(index, pixels[index]) for index in members]
        try:
            stack = stack_slices(slices)
        except NoVolume as exc:
            fault = Fault(
                kind=FaultKind.SHORT,
                number=numbers[key],
                series=series,
                detail=str(exc),
                seen_s=arrived_s,
            )
            arrivals.append(fault)
            continue
        frame = Frame(
            number=numbers[key],
            data=stack.data,
            affine=stack.affine,
            slope=stack.slope,
            inter=stack.inter,
            tr_s=pictures.tr_s,
            series=series,
            arrived_s=arrived_s,
            acquired_s=pictures.acquired_s(members),
        )
        arrivals.append(frame)
    return arrivals


class _Pictures:
    """The functional groups of a file, picture by picture."""

    def __init__(self, dataset: Any) -> None:
        shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
        self._shared: Any = shared[0]
        self._each: Sequence[Any] = dataset.PerFrameFunctionalGroupsSequence
        self.count = int(dataset.get("NumberOfFrames") or 0)
        if not 0 < self.count <= len(self._each):
            raise UnreadableVolume(
                f"describes {len(self._each)} of the {self.count} pictures that it announces"
            )
        self._siemens = "siemens" in str(dataset.get("Manufacturer", "")).lower()
        self._pointers = [int(item.DimensionIndexPointer) for item in self._dimensions(dataset)]
        self._check_kinds()
        self._slices = [self._place(index) for index in range(self.count)]
        repetition_ms = self._value(0, "MRTimingAndRelatedParametersSequence", "RepetitionTime")
        self.tr_s = float(repetition_ms) / 1e3 if repetition_ms else None

    def groups(self) -> dict[int, list[int]]:
        """Pictures of each volume, by its number as the file counts."""
        indices = [self._temporal(index) for index in range(self.count)]
        depths = [round(place.depth_mm, 2) for place in self._slices]
        if len(set(zip(indices, depths, strict=True))) < self.count:
            # time is not stated: the n-th picture of a place is the n-th volume's
            seen: Counter[float] = Counter()
            for index, depth in enumerate(depths):
                seen[depth] += 1
                indices[index] = seen[depth]
        groups: dict[int, list[int]] = {}
        for index, key in enumerate(indices):
            groups.setdefault(key, []).append(index)
        return groups

    def file_number(self, dataset: Any) -> int:
        """Number of the only volume of a file: the first count that has got beyond 1.

        Which of them counts volumes depends on vendor and release; the others stay at 1. Philips
        numbers scans, not volumes, as acquisitions.
        """
        counts = [self._temporal(0), dataset.get("InstanceNumber")]
        if self._siemens:
            own = self._value(0, "FrameContentSequence", "FrameAcquisitionNumber")
            counts = [dataset.get("AcquisitionNumber"), own, *counts]
        return next((int(count) for count in counts if count and int(count) > 1), 1)

    def slice(self, index: int, pixels: Any) -> Slice:
        """One picture with its place."""
        return replace(self._slices[index], pixels=pixels)

    def acquired_s(self, members: Sequence[int]) -> float | None:
        """When a volume began by the scanner's clock; Philips gives all the time of the first."""
        if not self._siemens:
            return None
        stated = [
            self._value(i, "FrameContentSequence", "FrameAcquisitionDateTime") for i in members
        ]
        times = [time_of_day_s(str(moment)[8:21]) for moment in stated if moment]
        known = [seconds for seconds in times if seconds is not None]
        return min(known) if known else None

    def _place(self, index: int) -> Slice:
        """A picture's place, without its pixels."""
        measures = "PixelMeasuresSequence"
        scale = "PixelValueTransformationSequence"
        try:
            return make_slice(
                _NO_PIXELS,
                self._value(index, "PlanePositionSequence", "ImagePositionPatient"),
                self._value(index, "PlaneOrientationSequence", "ImageOrientationPatient"),
                self._value(index, measures, "PixelSpacing"),
                self._value(index, measures, "SpacingBetweenSlices")
                or self._value(index, measures, "SliceThickness"),
                (
                    self._value(index, scale, "RescaleSlope"),
                    self._value(index, scale, "RescaleIntercept"),
                ),
            )
        except NoVolume as exc:
            raise UnreadableVolume(str(exc)) from exc

    def _temporal(self, index: int) -> int:
        content = "FrameContentSequence"
        stated = self._value(index, content, "TemporalPositionIndex")
        if not stated and _TEMPORAL_INDEX in self._pointers:
            values = self._value(index, content, "DimensionIndexValues") or []
            values = values if isinstance(values, Sequence) else [values]
            place = self._pointers.index(_TEMPORAL_INDEX)
            stated = values[place] if place < len(values) else None
        return int(stated or 1)

    def _check_kinds(self) -> None:
        kinds = {
            (
                str(self._value(i, "MREchoSequence", "EffectiveEchoTime")),
                str(self._value(i, "MRImageFrameTypeSequence", "ComplexImageComponent")),
                str(self._value(i, "FrameContentSequence", "StackID")),
            )
            for i in range(self.count)
        }
        if len(kinds) > 1:
            raise UnreadableVolume(
                "holds several pictures of each place and time (echoes, magnitude and phase, or "
                "stacks); export them as series of their own"
            )

    def _value(self, index: int, group: str, name: str) -> Any:
        """From a picture's own functional groups, else from those of all; None if in neither."""
        for groups in (self._each[index], self._shared):
            items = groups.get(group)
            if items and items[0].get(name) is not None:
                return items[0].get(name)
        return None

    @staticmethod
    def _dimensions(dataset: Any) -> list[Any]:
        return [
            d for d in dataset.get("DimensionIndexSequence") or [] if "DimensionIndexPointer" in d
        ]
