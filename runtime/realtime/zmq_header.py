"""The header of a volume over ZeroMQ: one JSON object, as pyneal's scanner side sends it.

    {"volIdx": 0, "TR": "1.6", "dtype": "int16", "shape": [64, 64, 36], "affine": "[[...], ...]"}

`volIdx` counts from 0, `affine` is itself JSON, and the volume's bytes follow in C order. pyneal's
own programs give TR in seconds or in milliseconds. Two more keys tell what pyneal cannot:
`series`, which series a volume belongs to, and `acquired`, seconds on the scanner's clock. No other
key is looked at. https://github.com/jeffmacinnes/pyneal, `src/scanReceiver.py`
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .source import UnreadableVolume
from .volume_writer import WrittenVolume

MAX_HEADER_BYTES = 16_384
_DTYPE = re.compile(r"[<>=|]?(u?int(8|16|32|64)|float(32|64)|[iu][1248]|f[48])")
_MOST_NUMBER = 1_000_000
_MOST_SIDE = 4096
_LONGEST_TR_S = 60.0
"""A larger TR is in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VolumeHeader:
    """What a header says."""

    number: int
    """From 0."""
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    """(4, 4) voxel centres to millimetres, right-anterior-superior."""
    tr_s: float | None
    series: str | None
    acquired_s: float | None

    @property
    def size_bytes(self) -> int:
        """Of the volume that follows."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(raw: bytes, most_bytes: int) -> VolumeHeader:
    """Read a header.

    Parameters
    ----------
    raw : bytes
    most_bytes : int
        That the volume may have.

    Raises
    ------
    UnreadableVolume
        Anything that cannot be the header of such a volume; the message quotes none of its values.
    """
    if len(raw) > MAX_HEADER_BYTES:
        raise UnreadableVolume(f"a header of {len(raw)} bytes; at most {MAX_HEADER_BYTES} are read")
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise UnreadableVolume("a header that is no JSON") from exc
    if not isinstance(fields, dict):
        raise UnreadableVolume("a header that is no JSON object")
    try:
        header = VolumeHeader(
            number=_number(fields["volIdx"]),
            shape=_shape(fields["shape"]),
            dtype=_dtype(fields["dtype"]),
            affine=_affine(fields["affine"]),
            tr_s=_tr_s(fields.get("TR")),
            series=_series(fields.get("series")),
            acquired_s=_finite(fields.get("acquired")),
        )
    except KeyError as exc:
        raise UnreadableVolume(f"a header without {exc}") from exc
    except (ValueError, TypeError, OverflowError, RecursionError) as exc:
        # a text of ours, or Python's about a value: only ours may pass on
        raise UnreadableVolume(f"a header with {_Bad.of(exc)}") from exc
    if header.size_bytes > most_bytes:
        raise UnreadableVolume(
            f"a header that promises {header.size_bytes} bytes; a volume of this run has at most "
            f"{most_bytes}"
        )
    return header


def header_bytes(volume: WrittenVolume) -> bytes:
    """The header of a volume that is sent."""
    fields = {
        "volIdx": volume.number,
        "TR": str(volume.tr_s),
        "dtype": str(volume.data.dtype),
        "shape": volume.data.shape,
        "affine": json.dumps(volume.affine.tolist()),
        "series": volume.series,
        "acquired": volume.acquired_s,
    }
    return json.dumps(fields).encode()


class _Bad(ValueError):
    """A value that makes no sense; its text quotes nothing that was sent."""

    @staticmethod
    def of(exc: Exception) -> str:
        return str(exc) if isinstance(exc, _Bad) else "damaged values"


def _whole(value: Any, least: int, most: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _Bad(f"a {what} that is no number from {least} to {most}")
    return value


def _number(value: Any) -> int:
    return _whole(value, -_MOST_NUMBER, _MOST_NUMBER, "volIdx")


def _shape(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3:
        raise _Bad("a shape that is not (X, Y, Z)")
    x, y, z = (_whole(side, 1, _MOST_SIDE, "shape") for side in value)
    return x, y, z


def _dtype(value: Any) -> np.dtype[Any]:
    if not isinstance(value, str) or not _DTYPE.fullmatch(value):
        raise _Bad("a dtype that is neither whole nor real numbers")
    return np.dtype(value)


def _affine(value: Any) -> NDArray[np.float64]:
    rows = json.loads(value) if isinstance(value, str) else value
    affine = np.array(rows, np.float64)
    good = affine.shape == (4, 4) and bool(np.isfinite(affine).all())
    if not good or affine[3].tolist() != [0, 0, 0, 1] or not np.linalg.det(affine[:3, :3]):
        raise _Bad("an affine that maps no volume")
    return affine


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise _Bad("a time that is not finite")
    return number


def _tr_s(value: Any) -> float | None:
    stated = _finite(value)
    if stated is None or stated <= 0:
        return None
    return stated / 1e3 if stated > _LONGEST_TR_S else stated


def _series(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _Bad("a series that is neither number nor text")
    return str(value)
