"""Lines of AFNI's prolog to values: only the keys that are read here, and none of them believed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

Fields: TypeAlias = dict[str, list[str]]
"""The values of each key."""

_READ = {
    *("ACQUISITION_TYPE", "TR", "ZDELTA", "XYFOV", "ZGAP", "ZFIRST", "XYZFIRST", "XYZOFF"),
    *("XYMATRIX", "ZNUM", "DATUM", "BYTEORDER", "ZORDER", "XYZAXES", "NUM_CHAN", "OBLIQUE_XFORM"),
}
_REPLACED = {"XYZFIRST": ("ZFIRST", "XYZOFF"), "XYZOFF": ("XYZFIRST", "ZFIRST")}
"""What says the same in another way; the last to come holds."""
_MOST_SIDE = 4096


class BadProlog(ValueError):
    """A value that makes no sense; its text quotes nothing that was sent."""


def prolog_fields(raw: bytes) -> Fields:
    """The values of each key that is read; of a key that comes twice, the later."""
    fields: Fields = {}
    for line in raw.decode("latin-1").split("\n"):
        key, *values = line.split() or [""]
        if key in _READ:
            for other in _REPLACED.get(key, ()):
                fields.pop(other, None)
            fields[key] = values
    return fields


def values_of(fields: Fields, key: str, least: int, most: int) -> Sequence[str]:
    """So many values of a key, those after `most` left out; BadProlog if they are not there."""
    values = fields.get(key)
    if values is None:
        raise BadProlog(f"no {key}")
    if len(values) < least:
        raise BadProlog(f"{key} with too few values")
    return values[:most]


def choice(fields: Fields, key: str, choices: Any, default: str) -> str:
    """A value that is one of some; BadProlog if it is another."""
    value = fields.get(key, [default])
    if not value or value[0] not in choices:
        raise BadProlog(f"{key} that is none of {', '.join(sorted(choices))}")
    return value[0]


def whole(text: str, key: str) -> int:
    """A size or a count, from 1; BadProlog if it is none."""
    if not re.fullmatch(r"\+?\d{1,6}", text) or not 1 <= int(text) <= _MOST_SIDE:
        raise BadProlog(f"{key} that is no number from 1 to {_MOST_SIDE}")
    return int(text)


def number(text: str, key: str) -> float:
    """A finite number; BadProlog if it is none."""
    value = float(text) if re.fullmatch(r"[-+.\deE]{1,40}", text) else math.nan
    if not math.isfinite(value):
        raise BadProlog(f"{key} that is no number")
    return value
