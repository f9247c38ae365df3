"""Where volumes of AFNI's real-time stream lie: its prolog has a matrix, or says it in words."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from .afni_fields import BadProlog, Fields, number, values_of

_LPS = {"R": (0, -1), "L": (0, 1), "A": (1, -1), "P": (1, 1), "I": (2, -1), "S": (2, 1)}
"""Letter of a direction: axis and sign in DICOM's left-posterior-superior frame."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_PLACE = re.compile(r"(?P<mm>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)(?P<way>[RLAPIS]?)")


def affine_of(fields: Fields, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """(4, 4) voxel centres to mm, right-anterior-superior; BadProlog if nothing says it."""
    if "OBLIQUE_XFORM" in fields:
        values = [
            number(text, "OBLIQUE_XFORM") for text in values_of(fields, "OBLIQUE_XFORM", 16, 16)
        ]
        matrix = np.array(values).reshape(4, 4)
        matrix[3] = 0, 0, 0, 1
    else:
        matrix = _straight(fields, shape)
    if not np.linalg.det(matrix[:3, :3]):
        raise BadProlog("a geometry that maps no volume")
    return _LPS_TO_RAS @ matrix


def _straight(fields: Fields, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """(4, 4) voxel centres to mm, left-posterior-superior, of axes along the body's."""
    axes = [_axis(text) for text in values_of(fields, "XYZAXES", 3, 3)]
    if sorted(axis for axis, _ in axes) != [0, 1, 2]:
        raise BadProlog("XYZAXES that do not point in three directions")
    spacing = _spacing(fields, shape)
    places = [""] * 3
    if "XYZFIRST" in fields:
        places = _places(" ".join(fields["XYZFIRST"]), 3)
    if "ZFIRST" in fields:
        places[2] = _places(" ".join(fields["ZFIRST"]), 1)[0]
    offsets = [number(text, "XYZOFF") for text in fields.get("XYZOFF", ["0", "0", "0"])[:3]]
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


def _spacing(fields: Fields, shape: tuple[int, int, int]) -> list[float]:
    view = [number(text, "XYFOV") for text in values_of(fields, "XYFOV", 1, 3)]
    wide = view[0]
    high = view[1] if len(view) > 1 and view[1] > 0 else wide
    deep = view[2] if len(view) > 2 else 0.0
    if deep > 0:
        thick = deep / shape[2] + number(fields.get("ZGAP", ["0"])[0], "ZGAP")
    else:
        thick = number(values_of(fields, "ZDELTA", 1, 1)[0], "ZDELTA")
    spacing = [wide / shape[0], high / shape[1], thick]
    if min(spacing) <= 0:
        raise BadProlog("a size that is not above 0")
    return spacing


def _first(place: str, axis: int, sign: int) -> float:
    """Where the first voxel lies along an axis of the body, in mm.

    Without a letter the distance is towards where the axis comes from.
    """
    found = _PLACE.fullmatch(place)
    assert found
    mm, way = number(found["mm"], "XYZFIRST"), found["way"]
    if not way:
        return -sign * mm
    other, towards = _LPS[way]
    if other != axis:
        raise BadProlog("XYZFIRST along another axis than XYZAXES")
    return towards * mm


def _places(text: str, count: int) -> list[str]:
    found = re.findall(r"[^\sRLAPIS]+[RLAPIS]?", text)
    if len(found) != count or not all(_PLACE.fullmatch(place) for place in found):
        raise BadProlog("XYZFIRST or ZFIRST that are no places")
    return found


def _axis(text: str) -> tuple[int, int]:
    """Axis and sign in the left-posterior-superior frame of R-L, RL or Right-to-Left."""
    begin, to, end = text.partition("-to-")
    ends = (begin[:1] + end[:1]).upper() if to else text.replace("-", "")
    if len(ends) != 2 or not set(ends) <= set(_LPS) or _LPS[ends[0]][0] != _LPS[ends[1]][0]:
        raise BadProlog("XYZAXES that are no directions")
    if ends[0] == ends[1]:
        raise BadProlog("XYZAXES that lead nowhere")
    return _LPS[ends[1]]
