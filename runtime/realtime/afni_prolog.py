"""What AFNI's real-time stream says before its images: lines of a key and its values.

    ACQUISITION_TYPE 3D+t
    TR 1.6
    XYMATRIX 64 64 36
    XYFOV 192 192 129.6
    XYZAXES R-L A-P I-S
    XYZFIRST 95R 94A 63I
    DATUM short

Ended by a NUL. Read as AFNI's own plug-in does (`README.realtime` and `plug_realtime.c` of
https://github.com/afni/afni): same defaults, same signs, same order of slices. Only the keys named
here are read; `NAME`, `PREFIX` and `NOTE`, which may name a person, are not.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .afni_fields import BadProlog, Fields, choice, number, prolog_fields, values_of, whole
from .afni_geometry import affine_of
from .source import UnreadableVolume

MAX_PROLOG_BYTES = 32 * 1024
"""As much as AFNI reads."""
MARKER = b"Et Earello Endorenna utulien!!"
"""An image that begins so is none: the data set ends here and another prolog follows."""

_BY_SLICE = {"2D+z", "2D+zt"}
_KINDS = _BY_SLICE | {"3D", "3D+t"}
_DATA = {"byte": "u1", "short": "i2", "int": "i4", "float": "f4"}
_ORDERS = {"LSB_FIRST": "<", "MSB_FIRST": ">"}
_MOST_CHANNELS = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prolog:
    """What the images that follow are."""

    shape: tuple[int, int, int]
    """(X, Y, Z)."""
    dtype: np.dtype[Any]
    """In the sender's byte order."""
    slices: tuple[int, ...] | None
    """Which slice each image of a volume is, in the order in which they come; None if an image is a
    whole volume."""
    channels: int
    """Images of so many data sets come in turn."""
    tr_s: float
    affine: NDArray[np.float64]
    """(4, 4) voxel centres to millimetres, right-anterior-superior."""

    @property
    def size_bytes(self) -> int:
        """Of one volume."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def image_bytes(self) -> int:
        """Of one image: a slice or a volume."""
        return self.size_bytes if self.slices is None else self.size_bytes // self.shape[2]


def read_prolog(raw: bytes, most_bytes: int) -> Prolog:
    """Read a prolog.

    Parameters
    ----------
    raw : bytes
        Up to its NUL.
    most_bytes : int
        That one volume of all channels may have.

    Raises
    ------
    UnreadableVolume
        Anything that describes no such volume; the message quotes none of its values.
    """
    fields = prolog_fields(raw)
    try:
        prolog = _prolog(fields)
    except (ValueError, OverflowError, KeyError, IndexError) as exc:
        said = str(exc) if isinstance(exc, BadProlog) else "damaged values"
        raise UnreadableVolume(f"an AFNI prolog with {said}") from exc
    if prolog.size_bytes * prolog.channels > most_bytes:
        raise UnreadableVolume(
            f"an AFNI prolog that promises {prolog.size_bytes * prolog.channels} bytes a volume; "
            f"one of this run has at most {most_bytes}"
        )
    return prolog


def _prolog(fields: Fields) -> Prolog:
    kind = choice(fields, "ACQUISITION_TYPE", _KINDS, "2D+zt")
    matrix = [whole(text, "XYMATRIX") for text in values_of(fields, "XYMATRIX", 1, 3)]
    x = matrix[0]
    y = matrix[1] if len(matrix) > 1 and matrix[1] > 1 else x
    z = matrix[2] if len(matrix) > 2 else whole(values_of(fields, "ZNUM", 1, 1)[0], "ZNUM")
    if "ZNUM" in fields and len(matrix) > 2:
        z = whole(fields["ZNUM"][0], "ZNUM")
    shape = x, y, z
    datum = choice(fields, "DATUM", _DATA, "short")
    order = _ORDERS[choice(fields, "BYTEORDER", _ORDERS, "LSB_FIRST")]
    if "BYTEORDER" not in fields:
        order = "<" if sys.byteorder == "little" else ">"
    channels = whole(fields.get("NUM_CHAN", ["1"])[0], "NUM_CHAN")
    if channels > _MOST_CHANNELS:
        raise BadProlog(f"NUM_CHAN over {_MOST_CHANNELS}")
    tr_s = number(fields.get("TR", ["1"])[0], "TR")
    if tr_s <= 0:
        raise BadProlog("TR that is not above 0")
    return Prolog(
        shape=shape,
        dtype=np.dtype(order + _DATA[datum]),
        slices=_slice_order(fields, z) if kind in _BY_SLICE else None,
        channels=channels,
        tr_s=tr_s,
        affine=affine_of(fields, shape),
    )


def _slice_order(fields: Fields, count: int) -> tuple[int, ...]:
    order = choice(fields, "ZORDER", {"alt", "seq"}, "alt")
    if order == "seq":
        return tuple(range(count))
    return (*range(0, count, 2), *range(1, count, 2))
