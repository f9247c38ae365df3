"""Three slices of a beta volume, drawn with NumPy in a diverging colour map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

BOX = 9
"""Edge of the box, in voxels, over which activity is averaged to find the most active place."""
ZOOM = 3
"""Picture pixels for each voxel."""
# blue to orange through near-white can be told apart with every form of colour blindness
_ANCHORS = ("#08306b", "#2171b5", "#9ecae1", "#f4f4f2", "#fdae6b", "#d94801", "#7f2704")
_OUTLINE, _CUT = (20, 20, 20, 255), (110, 110, 110, 255)
_PLANES = (
    ("sagittal", 0, ("P", "A", "S", "I")),
    ("coronal", 1, ("L", "R", "S", "I")),
    ("axial", 2, ("L", "R", "A", "P")),
)


@dataclass(frozen=True, slots=True)
class Slice:
    """One plane through a volume."""

    plane: str
    pixels: NDArray[np.uint8]
    """(H, W, 4) RGBA; transparent where the volume is zero."""
    edges: tuple[str, str, str, str]
    """Directions at the left, right, top and bottom edge."""
    position: str
    """Where the plane lies, such as "x = 12 mm"."""


@dataclass(frozen=True, slots=True)
class Brain:
    """Three orthogonal slices through the most active place."""

    slices: tuple[Slice, ...]
    limit: float
    """The colour map runs from minus to plus this, in the volume's units."""


def draw_brain(
    volume: NDArray[np.float32], affine: NDArray[np.float64], region: NDArray[np.bool_]
) -> Brain:
    """Draw a volume through the most active place of a region.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        Betas with axes to the right, anterior and superior; exactly 0 outside the brain.
    affine : (4, 4) float64
        Maps voxel indices to millimetres.
    region : (X, Y, Z) bool
        Where to look for the most active place; outlined in the slices.
    """
    limit = float(np.quantile(np.abs(volume[volume != 0]), 0.98)) if volume.any() else 1.0
    centre = most_active(volume, region)
    mm = apply_affine(affine, centre)
    slices = tuple(
        Slice(
            plane=plane,
            pixels=_draw(volume / limit, region, centre, axis),
            edges=edges,
            position=f"{'xyz'[axis]} = {mm[axis]:.0f} mm".replace("-", "\N{MINUS SIGN}"),
        )
        for plane, axis, edges in _PLANES
    )
    return Brain(slices, limit)


def most_active(volume: NDArray[np.float32], region: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Find the voxel of a region around which the mean absolute activity in it is highest."""
    activity = np.where(region, np.abs(volume), 0).astype(np.float64)
    for axis in range(3):
        activity = _running_mean(activity, axis)
    x, y, z = np.unravel_index(int(np.argmax(np.where(region, activity, -1))), volume.shape)
    return int(x), int(y), int(z)


def _running_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    width = [(0, 0)] * 3
    width[axis] = (BOX // 2 + 1, BOX // 2)
    total = np.moveaxis(np.cumsum(np.pad(values, width), axis), axis, 0)
    return np.moveaxis((total[BOX:] - total[:-BOX]) / BOX, 0, axis)


def _draw(
    volume: NDArray[np.float32],
    region: NDArray[np.bool_],
    centre: tuple[int, int, int],
    axis: int,
) -> NDArray[np.uint8]:
    """(H, W, 4) RGBA of one plane of a volume that is scaled to -1..1."""
    # rows of a picture run downwards, so the upper direction has to come first
    plane = np.moveaxis(volume, axis, 0)[centre[axis]].T[::-1]
    inside = np.moveaxis(region, axis, 0)[centre[axis]].T[::-1]
    pixels = _enlarge(np.dstack([colours(plane), np.where(plane != 0, 255, 0).astype(np.uint8)]))
    pixels[_outline(_enlarge(inside)) & (pixels[..., 3] > 0)] = _OUTLINE
    across, up = (centre[i] for i in range(3) if i != axis)
    _cut_lines(pixels, len(plane) - 1 - up, across)
    return pixels


def colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Map -1..1 to RGB: blue below zero, orange above, near-white at zero."""
    anchors = np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in _ANCHORS])
    at = np.linspace(-1, 1, len(anchors))
    channels = [np.interp(values, at, anchors[:, c]) for c in range(3)]
    return np.round(np.stack(channels, -1)).astype(np.uint8)


def _enlarge(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> NDArray[np.uint8]:
    return pixels.repeat(ZOOM, 0).repeat(ZOOM, 1).astype(np.uint8)


def _outline(inside: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels of a region within two pixels of its edge."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(inside > 0, 2), (5, 5))
    return (inside > 0) & ~windows.all((2, 3))


def _cut_lines(pixels: NDArray[np.uint8], row: int, column: int) -> None:
    """Dash the lines in which the other two planes cut this one, with a gap around the crossing."""
    gap = 4
    rows, columns = np.arange(len(pixels)), np.arange(pixels.shape[1])
    rows = rows[(np.abs(rows // ZOOM - row) > gap) & (rows // ZOOM % 2 == 0)]
    columns = columns[(np.abs(columns // ZOOM - column) > gap) & (columns // ZOOM % 2 == 0)]
    pixels[ZOOM * row + ZOOM // 2, columns] = _CUT
    pixels[rows, ZOOM * column + ZOOM // 2] = _CUT
