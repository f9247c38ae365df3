"""How a replayed volume is written: the bytes of its files, in a format that scanners export."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrittenVolume:
    """One volume, on its way into a file."""

    data: NDArray[Any]
    """(X, Y, Z) in its stored dtype."""
    affine: NDArray[np.float64]
    """(4, 4) voxel centres to millimetres, right-anterior-superior."""
    slope: float
    inter: float
    tr_s: float
    number: int
    """From 0."""
    series: int
    """Series number, as a console counts."""
    acquired_s: float
    """On the scanner's clock, from the beginning of the run."""


class VolumeWriter(Protocol):
    """A format."""

    suffix: str
    """Of file names, with its dot."""

    def parts(self, volume: WrittenVolume) -> list[tuple[str, bytes]]:
        """The files of one volume, in the order in which they are written: ending of each one's
        name, and the whole file.
        """
        ...


class NiftiWriter:
    """One NIfTI-1 file for each volume; its time offset is the time of acquisition.

    Parameters
    ----------
    compressed : bool
        Whether it is gzip.
    """

    def __init__(self, compressed: bool = False) -> None:
        self.suffix = ".nii.gz" if compressed else ".nii"
        self._compressed = compressed

    def parts(self, volume: WrittenVolume) -> list[tuple[str, bytes]]:
        """The one file."""
        return [(self.suffix, self.encode(volume))]

    def encode(self, volume: WrittenVolume) -> bytes:
        """The whole file."""
        import nibabel as nib

        header: Any = nib.Nifti1Header()
        header.set_data_dtype(volume.data.dtype)
        header.set_data_shape(volume.data.shape)
        header.set_sform(volume.affine, code=1)
        header.set_qform(volume.affine, code=1)
        header.set_xyzt_units("mm", "sec")
        header["pixdim"][4] = volume.tr_s
        header["toffset"] = volume.acquired_s
        header["scl_slope"], header["scl_inter"] = volume.slope, volume.inter
        header["vox_offset"], header["magic"] = 352, b"n+1"
        raw = header.binaryblock + bytes(4) + volume.data.tobytes(order="F")
        if not self._compressed:
            return raw
        deflate = zlib.compressobj(level=1, wbits=31)
        return deflate.compress(raw) + deflate.flush()
