"""Philips PAR/REC: a header of text and a file of pixels beside it, read through nibabel.

Consoles export a run when it is over, as one pair: `ParRecFile` reads that. Live, the research
streams of Philips write one pair for each volume: `read_par_rec` reads one of those. A PAR names
patient and examination; nothing but place, time and scale is taken out of it.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Generator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .frame import Frame, series_identity
from .source import IncompleteVolume, UnreadableVolume

_END = b"END OF DATA DESCRIPTION FILE"
_MAX_PAR_BYTES = 1 << 26
_MAX_REC_BYTES = 1 << 34
_NAME = re.compile(r"(?P<series>.*?)(?P<number>\d+)\.par", re.IGNORECASE)


def is_par(name: str) -> bool:
    """Whether a file's name is that of a PAR."""
    return name.lower().endswith(".par")


def is_rec(name: str) -> bool:
    """Whether a file's name is that of a REC."""
    return name.lower().endswith(".rec")


def partner(name: str) -> str:
    """Name of the REC that belongs to a PAR, and the other way round, in the same case."""
    stem, ending = name[:-3], name[-3:]
    other = "rec" if ending.lower() == "par" else "par"
    return stem + (other.upper() if ending.isupper() else other)


def read_par_rec(
    par: bytes, rec: bytes, *, name: str, arrived_s: float, first_number: int = 1
) -> Frame:
    """Read one volume of a live run.

    Parameters
    ----------
    par, rec : bytes
        The pair; `rec` is empty while there is none.
    name : str
        Of the PAR; its last digits are the volume's number, what is before them is the series.
    arrived_s : float
        As in `Frame`.
    first_number : int
        Number of the run's first volume.

    Raises
    ------
    IncompleteVolume
        A PAR without its end, fewer pixels than it promises, or slices that it lacks.
    UnreadableVolume
        No PAR, no number in its name, or more than one volume.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UnreadableVolume("a PAR/REC without a volume's number at the end of its name")
    number, series = int(found["number"]) - first_number, series_identity(found["series"])
    if _END not in par:
        raise IncompleteVolume(f"{len(par)} bytes of a PAR that does not end", number, series)
    images = _Images(par)
    if images.volumes != 1:
        raise UnreadableVolume(
            f"a PAR/REC of {images.volumes} volumes, exported after its run; play it with "
            "'--source file:'"
        )
    if len(rec) < images.rec_bytes:
        raise IncompleteVolume(f"{len(rec)} of {images.rec_bytes} bytes of pixels", number, series)
    pixels = np.frombuffer(rec, images.dtype, images.pixels)
    data, slope, inter = images.volume(pixels, 0)
    began_s = images.began_s(0)
    return Frame(
        number=number,
        data=data,
        affine=images.affine,
        slope=slope,
        inter=inter,
        tr_s=images.tr_s,
        series=series,
        arrived_s=arrived_s,
        acquired_s=began_s or None,  # 0 is also what stands there when it is not known
    )


class ParRecFile:
    """A recorded run in one pair; to its readers it is as `RunFile`.

    Parameters
    ----------
    path : path
        The PAR; the REC lies beside it under the same name.

    Raises
    ------
    InputError
        No such pair, not PAR/REC, several pictures of one place and time, or pixels cut off.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rec = self.path.with_name(partner(self.path.name))
        for part in (self.path, self._rec):
            if not part.is_file():
                raise InputError(f"{part}: no such file; a PAR and its REC lie in one folder")
        try:
            self._images = _Images(self.path.read_bytes())
        except UnreadableVolume as exc:
            raise InputError(f"{self.path}: {exc}") from exc
        found, wanted = self._rec.stat().st_size, self._images.rec_bytes
        if found < wanted:
            raise InputError(f"{self._rec} is truncated: {found} of {wanted} bytes; copy it again")
        self.volumes = self._images.volumes
        self.shape = self._images.shape
        """(X, Y, Z)."""
        self.affine = self._images.affine
        _, self.slope, self.inter = self._images.volume(self._pixels(), 0)
        self.tr_s = self._images.tr_s
        """Repetition time in seconds that the header states, None if it states none."""

    def read(self) -> Generator[NDArray[Any]]:
        """Each volume in turn, (X, Y, Z) integers; float32 where the slices' scales differ."""
        pixels = self._pixels()
        for number in range(self.volumes):
            yield self._images.volume(pixels, number)[0]

    def _pixels(self) -> NDArray[Any]:
        return np.memmap(self._rec, self._images.dtype, "r", shape=(self._images.pixels,))


class _Images:
    """What a PAR says of its pictures."""

    def __init__(self, par: bytes) -> None:
        if len(par) > _MAX_PAR_BYTES:
            raise UnreadableVolume(f"a PAR of {len(par)} bytes")
        try:
            self._read(par)
        except UnreadableVolume:
            raise
        except Exception as exc:  # whatever a parser makes of damaged text
            raise UnreadableVolume(f"a damaged PAR ({type(exc).__name__})") from exc

    def _read(self, par: bytes) -> None:
        from nibabel.parrec import PARRECHeader, parse_PAR_header

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of runs that were broken off: whole volumes count
            parsed: Any = parse_PAR_header(StringIO(par.decode("latin-1")))
            info, images = parsed
            for name in ("image_type_mr", "echo number", "cardiac phase number"):
                if len(set(images[name].tolist())) > 1:
                    raise UnreadableVolume(
                        "a PAR/REC with several pictures of each place and time (echoes, phases, "
                        "magnitude and phase); export them one by one"
                    )
            header: Any = PARRECHeader(info, images, permit_truncated=True, strict_sort=True)
        shape = tuple(int(n) for n in header.get_data_shape())
        columns, rows, stored = (int(n) for n in header.get_rec_shape())
        self.shape = shape[0], shape[1], shape[2]
        self.volumes = shape[3] if len(shape) > 3 else 1
        self.dtype = np.dtype(header.get_data_dtype()).newbyteorder("<")
        self.pixels = columns * rows * stored
        self.rec_bytes = self.pixels * self.dtype.itemsize
        if not 0 < self.rec_bytes <= _MAX_REC_BYTES:
            raise UnreadableVolume(f"promises {self.rec_bytes} bytes of pixels")
        if self.shape[2] < int(info["max_slices"]):
            raise UnreadableVolume(f"has {self.shape[2]} of {info['max_slices']} slices")
        self.affine = np.asarray(header.get_affine(), np.float64)
        self._order = np.asarray(header.get_sorted_slice_indices()).reshape(self.volumes, -1)
        self._slopes = images["rescale slope"].astype(float)
        self._inters = images["rescale intercept"].astype(float)
        self._began = images["dyn_scan_begin_time"].astype(float)
        repetition_ms = float(np.atleast_1d(info["repetition_time"])[0])
        self.tr_s = repetition_ms / 1e3 if repetition_ms > 0 else None
        if not np.isfinite([*self.affine.ravel(), *self._slopes, *self._inters]).all():
            raise UnreadableVolume("a PAR whose numbers make no sense")

    def began_s(self, volume: int) -> float:
        """When a volume began, in seconds from the beginning of the run."""
        return float(self._began[self._order[volume]].min())

    def volume(self, pixels: NDArray[Any], number: int) -> tuple[NDArray[Any], float, float]:
        """(X, Y, Z) of one volume with slope and intercept, as the console shows its values.

        One scale must hold for all of a run's volumes, or none is left and the data are float32.
        """
        x, y, _ = self.shape
        order = self._order[number]
        planes = pixels.reshape(-1, y, x)[order].astype(self.dtype.newbyteorder("="), copy=False)
        slopes, inters = np.unique(self._slopes), np.unique(self._inters)
        if len(slopes) == len(inters) == 1:
            return planes.transpose(2, 1, 0), float(slopes[0]), float(inters[0])
        scaled = planes * self._slopes[order, None, None] + self._inters[order, None, None]
        return scaled.astype(np.float32).transpose(2, 1, 0), 1.0, 0.0
