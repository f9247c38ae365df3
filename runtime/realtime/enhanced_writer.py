"""Replayed volumes as enhanced multi-frame DICOM, as Siemens XA or Philips writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import EnhancedMRImageStorage

from .dicom_writing import (
    DATE,
    RAS_TO_LPS,
    axes,
    decimals,
    file_bytes,
    new_dataset,
    stored,
    time_of_day,
)
from .volume_writer import WrittenVolume

Maker: TypeAlias = Literal["siemens", "philips"]

_CONTENT = Tag(0x0020, 0x9111)
_DIMENSIONS = {
    "Stack ID": Tag(0x0020, 0x9056),
    "In-Stack Position Number": Tag(0x0020, 0x9057),
    "Temporal Position Index": Tag(0x0020, 0x9128),
}


class EnhancedWriter:
    """One file for each volume.

    Parameters
    ----------
    run_key : str
        Names the run; its series get their UIDs from it.
    maker : {"siemens", "philips"}
        Whose way of writing it is.
    """

    suffix = ".dcm"

    def __init__(self, run_key: str, maker: Maker) -> None:
        self._run_key = run_key
        self._maker: Maker = maker

    def parts(self, volume: WrittenVolume) -> list[tuple[str, bytes]]:
        """The one file; errors are those of `enhanced_file`."""
        return [(self.suffix, self.encode(volume))]

    def encode(self, volume: WrittenVolume) -> bytes:
        """The whole file; errors are those of `enhanced_file`."""
        return enhanced_file(self._run_key, self._maker, [volume])


def enhanced_file(run_key: str, maker: Maker, volumes: Sequence[WrittenVolume]) -> bytes:
    """One file with one volume or several of a series.

    Siemens stores what holds for all pictures once, and slices in the order in which they were
    excited; Philips stores all volumes of a slice before the next one, everything for each.

    Raises
    ------
    InputError
        Axes that are not at right angles.
    """
    first, siemens = volumes[0], maker == "siemens"
    dataset = new_dataset(run_key, first, EnhancedMRImageStorage)
    dataset.Manufacturer = "Siemens Healthineers" if siemens else "Philips Medical Systems"
    dataset.SoftwareVersions = "syngo MR XA30" if siemens else "5.7.1"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "FMRI" if siemens else "M", "NONE"]
    dataset.AcquisitionDateTime = DATE + time_of_day(first.acquired_s)
    if not siemens:
        dataset.AcquisitionNumber, dataset.InstanceNumber = first.series, first.number + 1
        del dataset.AcquisitionTime
    # time is a dimension of a file only if it changes within it
    dimensions = list(_DIMENSIONS.items())[: 2 if len(volumes) == 1 else 3]
    dataset.DimensionIndexSequence = [_dimension(*entry) for entry in dimensions]
    shared, alike = Dataset(), _alike(first)
    shared.MRTimingAndRelatedParametersSequence = [_item(RepetitionTime=first.tr_s * 1e3)]
    if siemens:
        shared.update(alike)
    dataset.SharedFunctionalGroupsSequence = [shared]
    slices = range(first.data.shape[2])
    order = [(v, k) for v in volumes for k in (*slices[1::2], *slices[::2])]
    if not siemens:
        order = [(v, k) for k in slices for v in volumes]
    numbers = {id(v): stored(v) for v in volumes}
    groups: list[Dataset] = []
    for volume, k in order:
        group = _frame_groups(volume, k, numbers[id(volume)][1:])
        place = 1, k + 1, volume.number - first.number + 1
        group.FrameContentSequence[0].DimensionIndexValues = list(place[: len(dimensions)])
        if not siemens:
            group.update(alike)
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.NumberOfFrames = len(groups)
    return file_bytes(dataset, np.stack([numbers[id(v)][0][:, :, k].T for v, k in order]))


def _item(**values: object) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _dimension(label: str, tag: BaseTag) -> Dataset:
    return _item(
        DimensionIndexPointer=tag,
        FunctionalGroupPointer=_CONTENT,
        DimensionDescriptionLabel=label,
    )


def _alike(volume: WrittenVolume) -> Dataset:
    """Functional groups that are the same for all pictures."""
    directions, spacing = axes(volume.affine)
    orientation = _item(ImageOrientationPatient=decimals(directions[:, :2].T))
    measures = _item(
        PixelSpacing=decimals(spacing[[1, 0]]),
        SliceThickness=f"{spacing[2]:.10g}",
        SpacingBetweenSlices=f"{spacing[2]:.10g}",
    )
    groups = Dataset()
    groups.PlaneOrientationSequence = [orientation]
    groups.PixelMeasuresSequence = [measures]
    groups.MREchoSequence = [_item(EffectiveEchoTime=30.0)]
    groups.MRImageFrameTypeSequence = [_item(ComplexImageComponent="MAGNITUDE")]
    return groups


def _frame_groups(volume: WrittenVolume, k: int, scale: tuple[float, float]) -> Dataset:
    position = (RAS_TO_LPS @ volume.affine @ [0, 0, k, 1])[:3]
    content = _item(
        FrameAcquisitionNumber=volume.number + 1,
        FrameAcquisitionDateTime=DATE + time_of_day(volume.acquired_s),
        StackID="1",
        InStackPositionNumber=k + 1,
        TemporalPositionIndex=volume.number + 1,
    )
    slope, inter = decimals(scale)
    values = _item(RescaleIntercept=inter, RescaleSlope=slope, RescaleType="US")
    groups = Dataset()
    groups.FrameContentSequence = [content]
    groups.PlanePositionSequence = [_item(ImagePositionPatient=decimals(position))]
    groups.PixelValueTransformationSequence = [values]
    return groups
