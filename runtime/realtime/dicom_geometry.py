"""Slices with their places to one volume: what all DICOM formats that are no mosaic share.

A slice says where its first pixel lies, which way its rows and columns run, and how far apart they
are. The volume's third axis is found from the places of its slices, sorted along their normal, as
numbers of slices in headers count in any order. Millimetres in DICOM's left-posterior-superior
frame until the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_DIRECTION = 1e-3
"""Headers write directions with few digits; this much of a radian."""
_SAME_MM = 1e-3
_EVEN = 0.1
"""Share of the spacing by which places of slices may be rounded."""


class NoVolume(Exception):
    """Slices that are no volume together; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """One picture and its place."""

    pixels: NDArray[Any]
    """(rows, columns) as stored."""
    position: NDArray[np.float64]
    """(3,) centre of its first pixel, mm."""
    orientation: NDArray[np.float64]
    """(6,) unit directions in which a row's pixels and a column's pixels follow each other."""
    spacing: NDArray[np.float64]
    """(2,) mm between rows, and between columns."""
    thickness_mm: float
    """What a volume of one slice is thick."""
    slope: float = 1.0
    inter: float = 0.0

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector out of the slice."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def depth_mm(self) -> float:
        """Where it lies along its normal."""
        return float(self.normal @ self.position)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """One volume."""

    data: NDArray[Any]
    """(X, Y, Z): columns, rows, slices along their normal; first index fastest."""
    affine: NDArray[np.float64]
    """(4, 4) voxel centres to millimetres, right-anterior-superior."""
    slope: float
    inter: float


def make_slice(
    pixels: NDArray[Any],
    position: Any,
    orientation: Any,
    spacing: Any,
    thickness_mm: Any,
    scale: tuple[Any, Any] = (None, None),
) -> Slice:
    """A slice from header values of any kind.

    Raises
    ------
    NoVolume
        Values that are missing, or say no place.
    """
    try:
        place = np.array(position, np.float64).reshape(3)
        axes = np.array(orientation, np.float64).reshape(6)
        apart = np.array(spacing, np.float64).reshape(2)
        thick = float(thickness_mm or 1.0)
        slope, inter = (
            float(v) if v is not None else d for v, d in zip(scale, (1, 0), strict=True)
        )
    except (TypeError, ValueError) as exc:
        raise NoVolume("a picture without place, direction or pixel size") from exc
    lengths = np.array([axes[:3] @ axes[:3], axes[3:] @ axes[3:], 1 + axes[:3] @ axes[3:]])
    known = np.isfinite([*place, *axes, *apart, thick, slope, inter]).all()
    if not known or min(*apart, thick) <= 0 or np.abs(lengths - 1).max() > 0.01:
        raise NoVolume("a picture whose place, direction or pixel size makes no sense")
    return Slice(
        pixels=pixels,
        position=place,
        orientation=axes,
        spacing=apart,
        thickness_mm=thick,
        slope=slope,
        inter=inter,
    )


def stack_slices(slices: Sequence[Slice]) -> Stack:
    """Put slices together, whatever order they came in.

    Raises
    ------
    NoVolume
        They differ in size or direction, two lie at one place, or one between them is missing.
    """
    ordered = sorted(slices, key=lambda one: one.depth_mm)
    first, last = ordered[0], ordered[-1]
    for one in ordered:
        alike = (
            one.pixels.shape == first.pixels.shape
            and np.allclose(one.orientation, first.orientation, atol=_SAME_DIRECTION)
            and np.allclose(one.spacing, first.spacing, atol=_SAME_MM)
        )
        if not alike:
            raise NoVolume("pictures of different size or direction")
    step = first.normal * first.thickness_mm
    if len(ordered) > 1:
        _check_even(np.array([one.depth_mm for one in ordered]))
        step = (last.position - first.position) / (len(ordered) - 1)
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.spacing[1]
    affine[:3, 1] = first.orientation[3:] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, first.position
    data, slope, inter = _scaled(ordered)
    return Stack(data=data, affine=_LPS_TO_RAS @ affine, slope=slope, inter=inter)


def _check_even(depths: NDArray[np.float64]) -> None:
    steps = np.diff(depths)
    step = float(np.median(steps))
    if steps.min() < 0.01:
        raise NoVolume("two pictures at one place")
    if np.abs(steps - step).max() > _EVEN * step:
        lacking = int(np.rint(steps / steps.min()).sum()) + 1 - len(depths)
        raise NoVolume(
            f"{lacking} slices are missing between its {len(depths)}"
            if lacking
            else "slices that are not evenly apart"
        )


def _scaled(ordered: Sequence[Slice]) -> tuple[NDArray[Any], float, float]:
    """As stored if one scale holds for all slices, else float32 with the scales applied."""
    scales = {(one.slope, one.inter) for one in ordered}
    if len(scales) == 1:
        ((slope, inter),) = scales
        return np.stack([one.pixels for one in ordered]).transpose(2, 1, 0), slope, inter
    planes = [one.pixels.astype(np.float32) * one.slope + one.inter for one in ordered]
    return np.stack(planes).astype(np.float32, copy=False).transpose(2, 1, 0), 1.0, 0.0
