"""The formats in which a run can be replayed into a folder, by the names that an operator types."""

from __future__ import annotations

from collections.abc import Callable

from .enhanced_writer import EnhancedWriter
from .mosaic_writer import MosaicWriter
from .par_rec_writer import ParRecWriter
from .slice_writer import SliceWriter
from .volume_writer import NiftiWriter, VolumeWriter

_WRITERS: dict[str, Callable[[str], VolumeWriter]] = {
    "nifti": lambda _: NiftiWriter(),
    "nifti-gz": lambda _: NiftiWriter(compressed=True),
    "mosaic": MosaicWriter,
    "siemens-enhanced": lambda key: EnhancedWriter(key, "siemens"),
    "philips-enhanced": lambda key: EnhancedWriter(key, "philips"),
    "ge-slices": lambda key: SliceWriter(key, "ge"),
    "siemens-slices": lambda key: SliceWriter(key, "siemens"),
    "philips-slices": lambda key: SliceWriter(key, "philips"),
    "par-rec": lambda _: ParRecWriter(),
}
FORMATS = tuple(_WRITERS)


def make_writer(name: str, run_key: str) -> VolumeWriter:
    """A writer.

    Parameters
    ----------
    name : str
        One of `FORMATS`.
    run_key : str
        Names the run; the series of DICOM get their UIDs from it.
    """
    return _WRITERS[name](run_key)
