"""A replayed volume as classic DICOM, one file a slice, as GE, Siemens XA or Philips writes it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from .dicom_writing import RAS_TO_LPS, axes, decimals, file_bytes, new_dataset, stored, time_of_day
from .volume_writer import WrittenVolume

Maker: TypeAlias = Literal["ge", "siemens", "philips"]

_NAMES = {
    "ge": "GE MEDICAL SYSTEMS",
    "siemens": "Siemens Healthineers",
    "philips": "Philips Medical Systems",
}


class SliceWriter:
    """As many files for each volume as it has slices.

    Parameters
    ----------
    run_key : str
        Names the run; its series get their UIDs from it.
    maker : {"ge", "siemens", "philips"}
        Whose way of writing it is. GE and Philips say how many slices there are, Siemens does not;
        Siemens writes them in the order in which they were excited.
    """

    suffix = ".dcm"

    def __init__(self, run_key: str, maker: Maker) -> None:
        self._run_key = run_key
        self._maker = maker
        self._slices = 0  # of the run, of which a volume may lack some

    def parts(self, volume: WrittenVolume) -> list[tuple[str, bytes]]:
        """Ending of each file's name, and the whole file.

        Raises
        ------
        InputError
            Axes that are not at right angles, which DICOM cannot say.
        """
        slices = range(volume.data.shape[2])
        self._slices = max(self._slices, len(slices))
        order = [*slices[1::2], *slices[::2]] if self._maker == "siemens" else [*slices]
        pixels, slope, inter = stored(volume)
        files: list[tuple[str, bytes]] = []
        for k in order:
            dataset = new_dataset(self._run_key, volume, MRImageStorage, k)
            self._add_identity(dataset, volume, k)
            _add_geometry(dataset, volume, k)
            if self._maker == "philips" or (slope, inter) != (1.0, 0.0):
                dataset.RescaleSlope, dataset.RescaleIntercept = decimals([slope, inter])
            files.append((f"_{k + 1:04d}{self.suffix}", file_bytes(dataset, pixels[:, :, k].T)))
        return files

    def _add_identity(self, dataset: Dataset, volume: WrittenVolume, k: int) -> None:
        dataset.Manufacturer = _NAMES[self._maker]
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        dataset.InstanceNumber = volume.number * self._slices + k + 1
        if self._maker == "siemens":
            dataset.SoftwareVersions = "syngo MR XA30"
            return
        dataset.TemporalPositionIdentifier = volume.number + 1
        dataset.AcquisitionTime = time_of_day(0.0)  # of the whole series
        if self._maker == "ge":
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
            dataset.AcquisitionNumber = 1
            private = dataset.private_block(0x0021, "GEMS_RELA_01", create=True)
            private.add_new(0x4F, "SS", self._slices)
        else:
            dataset.AcquisitionNumber = volume.series
            private = dataset.private_block(0x2001, "Philips Imaging DD 001", create=True)
            private.add_new(0x18, "SL", self._slices)


def _add_geometry(dataset: Dataset, volume: WrittenVolume, k: int) -> None:
    directions, spacing = axes(volume.affine)
    dataset.ImagePositionPatient = decimals((RAS_TO_LPS @ volume.affine @ [0, 0, k, 1])[:3])
    dataset.ImageOrientationPatient = decimals(directions[:, :2].T)
    dataset.PixelSpacing = decimals(spacing[[1, 0]])  # between rows, columns
    dataset.SliceThickness = dataset.SpacingBetweenSlices = f"{spacing[2]:.10g}"
