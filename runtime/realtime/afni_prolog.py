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
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .source import UnreadableVolume

MAX_PROLOG_BYTES = 32 * 1024
"""As much as AFNI reads."""
MARKER = b"Et Earello Endorenna utulien!!"
"""An image that begins so is none: the data set ends here and another prolog follows."""

_BY_SLICE = {"2D+z", "2D+zt"}
_KINDS = _BY_SLICE | {"3D", "3D+t"}
_DATA = {"byte": "u1", "short": "i2", "int": "i4", "float": "f4"}
_ORDERS = {"LSB_FIRST": "<", "MSB_FIRST": ">"}
_LPS = {"R": (0, -1), "L": (0, 1), "A": (1, -1), "P": (1, 1), "I": (2, -1), "S": (2, 1)}
"""Letter of a direction: axis and sign in DICOM's left-posterior-superior frame."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_READ = {
    *("ACQUISITION_TYPE", "TR", "ZDELTA", "XYFOV", "ZGAP", "ZFIRST", "XYZFIRST", "XYZOFF"),
    *("XYMATRIX", "ZNUM", "DATUM", "BYTEORDER", "ZORDER", "XYZAXES", "NUM_CHAN", "OBLIQUE_XFORM"),
}
_REPLACED = {"XYZFIRST": ("ZFIRST", "XYZOFF"), "XYZOFF": ("XYZFIRST", "ZFIRST")}
"""What says the same in another way; the last to come holds."""
_MOST_SIDE = 4096
_MOST_CHANNELS = 32
_PLACE = re.compile(r"(?P<mm>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)(?P<way>[RLAPIS]?)")


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
    fields = _fields(raw)
    try:
        prolog = _prolog(fields)
    except (ValueError, OverflowError, KeyError, IndexError) as exc:
        said = str(exc) if isinstance(exc, _Bad) else "damaged values"
        raise UnreadableVolume(f"an AFNI prolog with {said}") from exc
    if prolog.size_bytes * prolog.channels > most_bytes:
        raise UnreadableVolume(
            f"an AFNI prolog that promises {prolog.size_bytes * prolog.channels} bytes a volume; "
            f"one of this run has at most {most_bytes}"
        )
    return prolog


class _Bad(ValueError):
    """A value that makes no sense; its text quotes nothing that was sent."""


def _fields(raw: bytes) -> dict[str, list[str]]:
    """The values of each key that is read; of a key that comes twice, the later."""
    fields: dict[str, list[str]] = {}
    for line in raw.decode("latin-1").split("\n"):
        key, *values = line.split() or [""]
        if key in _READ:
            for other in _REPLACED.get(key, ()):
                fields.pop(other, None)
            fields[key] = values
    return fields


def _prolog(fields: dict[str, list[str]]) -> Prolog:
    kind = _choice(fields, "ACQUISITION_TYPE", _KINDS, "2D+zt")
    matrix = [_whole(text, "XYMATRIX") for text in _some(fields, "XYMATRIX", 1, 3)]
    x = matrix[0]
    y = matrix[1] if len(matrix) > 1 and matrix[1] > 1 else x
    z = matrix[2] if len(matrix) > 2 else _whole(_some(fields, "ZNUM", 1, 1)[0], "ZNUM")
    if "ZNUM" in fields and len(matrix) > 2:
        z = _whole(fields["ZNUM"][0], "ZNUM")
    shape = x, y, z
    datum = _choice(fields, "DATUM", _DATA, "short")
    order = _ORDERS[_choice(fields, "BYTEORDER", _ORDERS, "LSB_FIRST")]
    if "BYTEORDER" not in fields:
        order = "<" if sys.byteorder == "little" else ">"
    channels = _whole(fields.get("NUM_CHAN", ["1"])[0], "NUM_CHAN")
    if channels > _MOST_CHANNELS:
        raise _Bad(f"NUM_CHAN over {_MOST_CHANNELS}")
    tr_s = _number(fields.get("TR", ["1"])[0], "TR")
    if tr_s <= 0:
        raise _Bad("TR that is not above 0")
    return Prolog(
        shape=shape,
        dtype=np.dtype(order + _DATA[datum]),
        slices=_slice_order(fields, z) if kind in _BY_SLICE else None,
        channels=channels,
        tr_s=tr_s,
        affine=_affine(fields, shape),
    )


def _slice_order(fields: dict[str, list[str]], count: int) -> tuple[int, ...]:
    order = _choice(fields, "ZORDER", {"alt", "seq"}, "alt")
    if order == "seq":
        return tuple(range(count))
    return (*range(0, count, 2), *range(1, count, 2))


def _affine(fields: dict[str, list[str]], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    if "OBLIQUE_XFORM" in fields:
        values = [_number(text, "OBLIQUE_XFORM") for text in _some(fields, "OBLIQUE_XFORM", 16, 16)]
        matrix = np.array(values).reshape(4, 4)
        matrix[3] = 0, 0, 0, 1
    else:
        matrix = _straight(fields, shape)
    if not np.linalg.det(matrix[:3, :3]):
        raise _Bad("a geometry that maps no volume")
    return _LPS_TO_RAS @ matrix


def _straight(fields: dict[str, list[str]], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """(4, 4) voxel centres to mm, left-posterior-superior, of axes along the body's."""
    axes = [_axis(text) for text in _some(fields, "XYZAXES", 3, 3)]
    if sorted(axis for axis, _ in axes) != [0, 1, 2]:
        raise _Bad("XYZAXES that do not point in three directions")
    spacing = _spacing(fields, shape)
    places = [""] * 3
    if "XYZFIRST" in fields:
        places = _places(" ".join(fields["XYZFIRST"]), 3)
    if "ZFIRST" in fields:
        places[2] = _places(" ".join(fields["ZFIRST"]), 1)[0]
    offsets = [_number(text, "XYZOFF") for text in fields.get("XYZOFF", ["0", "0", "0"])[:3]]
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for column, (axis, sign) in enumerate(axes):
        matrix[axis, column] = sign * spacing[column]
        if places[column]:
            matrix[axis, 3] = _first(places[column], axis, sign)
        else:  # centred, so that it begins at the far side of where it goes
            centre = (shape[column] - 1) / 2 * spacing[column] + offsets[column]
            matrix[axis, 3] = -sign * centre
    return matrix


def _spacing(fields: dict[str, list[str]], shape: tuple[int, int, int]) -> list[float]:
    view = [_number(text, "XYFOV") for text in _some(fields, "XYFOV", 1, 3)]
    wide = view[0]
    high = view[1] if len(view) > 1 and view[1] > 0 else wide
    deep = view[2] if len(view) > 2 else 0.0
    if deep > 0:
        thick = deep / shape[2] + _number(fields.get("ZGAP", ["0"])[0], "ZGAP")
    else:
        thick = _number(_some(fields, "ZDELTA", 1, 1)[0], "ZDELTA")
    spacing = [wide / shape[0], high / shape[1], thick]
    if min(spacing) <= 0:
        raise _Bad("a size that is not above 0")
    return spacing


def _first(place: str, axis: int, sign: int) -> float:
    """Where the first voxel lies along an axis of the body, in mm.

    Without a letter the distance is towards where the axis comes from.
    """
    found = _PLACE.fullmatch(place)
    assert found
    mm, way = _number(found["mm"], "XYZFIRST"), found["way"]
    if not way:
        return -sign * mm
    other, towards = _LPS[way]
    if other != axis:
        raise _Bad("XYZFIRST along another axis than XYZAXES")
    return towards * mm


def _places(text: str, count: int) -> list[str]:
    found = re.findall(r"[^\sRLAPIS]+[RLAPIS]?", text)
    if len(found) != count or not all(_PLACE.fullmatch(place) for place in found):
        raise _Bad("XYZFIRST or ZFIRST that are no places")
    return found


def _axis(text: str) -> tuple[int, int]:
    """Axis and sign in the left-posterior-superior frame of R-L, RL or Right-to-Left."""
    begin, to, end = text.partition("-to-")
    ends = (begin[:1] + end[:1]).upper() if to else text.replace("-", "")
    if len(ends) != 2 or not set(ends) <= set(_LPS) or _LPS[ends[0]][0] != _LPS[ends[1]][0]:
        raise _Bad("XYZAXES that are no directions")
    if ends[0] == ends[1]:
        raise _Bad("XYZAXES that lead nowhere")
    return _LPS[ends[1]]


def _some(fields: dict[str, list[str]], key: str, least: int, most: int) -> Sequence[str]:
    values = fields.get(key)
    if values is None:
        raise _Bad(f"no {key}")
    if len(values) < least:
        raise _Bad(f"{key} with too few values")
    return values[:most]


def _choice(fields: dict[str, list[str]], key: str, choices: Any, default: str) -> str:
    value = fields.get(key, [default])
    if not value or value[0] not in choices:
        raise _Bad(f"{key} that is none of {', '.join(sorted(choices))}")
    return value[0]


def _whole(text: str, key: str) -> int:
    if not re.fullmatch(r"\+?\d{1,6}", text) or not 1 <= int(text) <= _MOST_SIDE:
        raise _Bad(f"{key} that is no number from 1 to {_MOST_SIDE}")
    return int(text)


def _number(text: str, key: str) -> float:
    value = float(text) if re.fullmatch(r"[-+.\deE]{1,40}", text) else math.nan
    if not math.isfinite(value):
        raise _Bad(f"{key} that is no number")
    return value
