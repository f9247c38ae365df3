"""A whole run in one 4-D NIfTI file, read volume by volume so that its length costs no memory."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .nifti_volume import header_tr_s
from .par_rec import ParRecFile, is_par


class RunFile:
    """A 4-D NIfTI file, plain or gzip.

    Parameters
    ----------
    path : path
        (X, Y, Z, T) integers or real numbers with a known orientation.

    Raises
    ------
    InputError
        No such file, not NIfTI, not 4-D, no orientation, or shorter than its header promises.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import nibabel as nib
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError

        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file")
        try:
            image: Any = nib.load(self.path)
        except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError) as exc:
            raise InputError(f"{self.path} is not a NIfTI file, or is damaged ({exc})") from exc
        if not isinstance(image, nib.Nifti1Image) or len(image.shape) != 4 or 0 in image.shape:
            raise InputError(
                f"{self.path} holds {type(image).__name__} of shape {image.shape}; "
                "expected a single-file NIfTI (X, Y, Z, T)"
            )
        header: Any = image.header
        if not (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0):
            raise InputError(f"{self.path}: its orientation is unknown, both form codes are 0")
        self._stored: np.dtype[Any] = header.get_data_dtype()
        if self._stored.kind not in "iuf":
            raise InputError(f"{self.path} holds {self._stored} values; expected real numbers")
        x, y, z, self.volumes = (int(n) for n in image.shape)
        self.shape = (x, y, z)
        """(X, Y, Z)."""
        self.affine = np.asarray(image.affine, np.float64)
        proxy: Any = image.dataobj
        self.slope, self.inter = float(proxy.slope), float(proxy.inter)
        self.tr_s = header_tr_s(header)
        """Repetition time in seconds that the header states, None if it states none."""
        self._offset = int(proxy.offset)
        self._check_size()

    def read(self) -> Generator[NDArray[Any]]:
        """Each volume in turn, (X, Y, Z) in the stored dtype, native byte order.

        Raises
        ------
        InputError
            A compressed file that ends early or is damaged.
        """
        from nibabel.openers import ImageOpener

        count = int(np.prod(self.shape))
        with ImageOpener(str(self.path)) as stream:
            for number in range(self.volumes):
                try:
                    if number == 0:
                        stream.seek(self._offset)
                    raw = stream.read(count * self._stored.itemsize)
                except (OSError, EOFError, ValueError) as exc:
                    raise InputError(f"{self.path} is damaged at volume {number} ({exc})") from exc
                if len(raw) < count * self._stored.itemsize:
                    raise InputError(f"{self.path} ends within volume {number} of {self.volumes}")
                data = np.frombuffer(raw, self._stored).reshape(self.shape, order="F")
                yield data.astype(self._stored.newbyteorder("="), copy=False)

    def _check_size(self) -> None:
        if self.path.suffix.lower() != ".nii":
            return
        wanted = self._offset + int(np.prod(self.shape)) * self.volumes * self._stored.itemsize
        found = self.path.stat().st_size
        if found < wanted:
            raise InputError(f"{self.path} is truncated: {found} of {wanted} bytes; copy it again")


RecordedRun: TypeAlias = RunFile | ParRecFile
"""A whole run, whichever files it is in."""


def open_run(path: str | os.PathLike[str]) -> RecordedRun:
    """A recorded run: the PAR of a PAR/REC pair, or else a 4-D NIfTI file; errors are theirs."""
    return ParRecFile(path) if is_par(Path(path).name) else RunFile(path)
