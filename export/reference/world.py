"""The brains of the reference world: eight subjects on NSD's native grids, with tuning that is
known exactly.

Fixed before the shipped encoder was trained, and never changed to pass a score. `README.md` beside
this file tells it in words, and what drafts came before.

Anatomy is the grey matter of the MNI152 template. Each subject's brain is that template, scaled to
fill the subject's own native grid as subject 1 fills its grid, then turned and shifted by up to
`TURN_DEG` and `SHIFT_MM`. The visual mask is posterior grey matter. A voxel's tuning is smooth in
position: its receptive field moves slowly over a retinotopic map, its preferences for contrast,
colour and shape form clusters 20 mm wide. Both are Gaussian random fields in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .features import FEATURES, PER_PLACE
from .scenes import BACKGROUNDS, PLACES

VOXEL_MM = 1.8
GRID = (83, 104, 81)
"""Model grid, axes S, A, R: subject 1's native grid."""
NATIVE_SHAPES = {
    "S1": (83, 104, 81), "S2": (84, 106, 82), "S3": (82, 106, 81), "S4": (80, 99, 85),
    "S5": (78, 97, 79), "S6": (83, 113, 85), "S7": (81, 95, 78), "S8": (78, 103, 80),
}  # fmt: skip
"""NSD's native grids in S, A, R order."""
SEEN = ("S1", "S2", "S3", "S4", "S5", "S6")
UNSEEN = ("S7", "S8")
"""Two subjects of whom nothing is ever seen in training."""
ORIGIN_MM = (-58.0, -105.0, -72.0)
"""World position of voxel (0, 0, 0) of subject 1's grid, S, A, R."""
CLUSTER_MM = 20.0
"""Mean width of a cluster of like tuning: the distance between sign changes of a gain field along a
line.
"""
MAP_MM = 60.0
"""The same for the retinotopic map, which varies over whole areas rather than clusters."""
DEVIATION = 0.02
"""Share of the variance of every tuning field that is the subject's own."""
TURN_DEG, SHIFT_MM = 0.75, 0.75
"""How far a subject's anatomy is turned about and shifted along each axis, at most, after it is
scaled to its grid.
"""
FIELD_OF_VIEW = 1.3
"""Standard deviation of receptive-field centres over the map; places lie at -1, 0, 1."""
RECEPTIVE_WIDTH = 0.75
"""Receptive fields: standard deviation in units of the distance between neighbouring places."""
WORLD_SEED = 20241210


@dataclass(frozen=True, slots=True)
class Fields:
    """Tuning fields sampled at V positions, each of unit variance over space.

    Attributes
    ----------
    centre : (V, 2) float
        Receptive-field centre in the visual field, places at -1, 0, 1.
    gain : (V, 7) float
        Preference for contrast, colour (3) and shape (3).
    background : (V, 4) float
        Preference for each background.
    """

    centre: NDArray[np.float64]
    gain: NDArray[np.float64]
    background: NDArray[np.float64]

    def tuning(self) -> NDArray[np.float64]:
        """W, the response of each voxel to each feature: (V, 67)."""
        y, x = np.divmod(np.arange(len(PLACES)), 3)
        places = np.stack([y, x], 1) - 1.0  # (9, 2)
        distance2 = ((self.centre[:, None] - places) ** 2).sum(2)
        window = np.exp(-distance2 / (2 * RECEPTIVE_WIDTH**2))  # (V, 9)
        local = (window[:, :, None] * self.gain[:, None]).reshape(len(window), -1)
        return np.concatenate([local, self.background], axis=1)


@dataclass(frozen=True)
class Subject:
    """One simulated brain on its native grid (arrays in S, A, R order)."""

    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Native grid in voxels."""
        return NATIVE_SHAPES[self.name]

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) native voxel (S, A, R order) to scanner millimetres (R, A, S)."""
        middle = np.array(ORIGIN_MM) + VOXEL_MM * (np.array(GRID) - 1) / 2
        start = middle - VOXEL_MM * (np.array(self.shape) - 1) / 2
        out = np.zeros((4, 4))
        out[[2, 1, 0], [0, 1, 2]] = VOXEL_MM
        out[:3, 3] = start[::-1]
        out[3, 3] = 1
        return out

    @cached_property
    def to_template(self) -> NDArray[np.float64]:
        """(4, 4) native voxel (S, A, R) to template millimetres (S, A, R)."""
        rng = np.random.default_rng([WORLD_SEED, 1, int(self.name[1])])
        fill = np.array(GRID) / np.array(self.shape) * VOXEL_MM
        angles = np.deg2rad(rng.uniform(-TURN_DEG, TURN_DEG, 3))
        shift = rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
        if self.name == "S1":
            angles, shift = np.zeros(3), np.zeros(3)
        turn = np.eye(3)
        for axis, angle in enumerate(angles):
            i, j = [a for a in range(3) if a != axis]
            plane = np.eye(3)
            plane[[i, i, j, j], [i, j, i, j]] = (
                np.cos(angle),
                -np.sin(angle),
                np.sin(angle),
                np.cos(angle),
            )
            turn = plane @ turn
        out = np.eye(4)
        out[:3, :3] = turn * fill
        middle = np.array(ORIGIN_MM) + VOXEL_MM * (np.array(GRID) - 1) / 2
        out[:3, 3] = middle + shift - out[:3, :3] @ ((np.array(self.shape) - 1) / 2)
        return out

    @cached_property
    def brain(self) -> NDArray[np.bool_]:
        """Voxels inside the brain, where a beta exists; outside it is 0."""
        return self._template("brain") > 0.5

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Visually responsive voxels: posterior grey matter."""
        return (self._template("visual") > 0.3) & self.brain

    def _template(self, which: str) -> NDArray[np.float32]:
        data, vox2mm = template()[which]
        matrix = np.linalg.inv(vox2mm) @ self.to_template
        turn, shift = matrix[:3, :3], cast(Any, matrix[:3, 3])  # scipy expects a number or a vector
        return cast(
            NDArray[np.float32],
            ndimage.affine_transform(data, turn, shift, self.shape, order=1),
        )

    @cached_property
    def fields(self) -> Fields:
        """Tuning fields at the mask's voxels."""
        where = np.argwhere(self.mask)
        mm = where @ self.to_template[:3, :3].T + self.to_template[:3, 3]
        own = int(self.name[1])
        maps, gains = (
            np.sqrt(1 - DEVIATION) * random_fields(mm, count, width, 0)
            + np.sqrt(DEVIATION) * random_fields(mm, count, width, own)
            for count, width in ((2, MAP_MM), (PER_PLACE + len(BACKGROUNDS), CLUSTER_MM))
        )
        return Fields(FIELD_OF_VIEW * maps, gains[:, :PER_PLACE], gains[:, PER_PLACE:])

    @cached_property
    def tuning(self) -> NDArray[np.float32]:
        """W at the mask's voxels, (V, 67) float32, before scaling to percent signal change."""
        weights = self.fields.tuning()
        assert weights.shape[1] == FEATURES
        return weights.astype(np.float32)


def random_fields(
    mm: NDArray[np.float64], count: int, width_mm: float, seed: int
) -> NDArray[np.float64]:
    """Smooth random fields in template space, of zero mean and unit variance, read at positions.

    Parameters
    ----------
    mm : (V, 3) float
        Positions in template millimetres, S, A, R.
    count : int
        Fields.
    width_mm : float
        Mean distance between sign changes along a line; a field smoothed with a Gaussian of sigma
        s changes sign every pi sqrt(2) s.
    seed : int
        0 is common to all subjects; other values are a subject's own.

    Returns
    -------
    (V, count) float64
    """
    step = 3.0
    low, size = np.array((-90.0, -130.0, -100.0)), (70, 84, 68)
    out = np.empty((len(mm), count))
    for i in range(count):
        noise = np.random.default_rng([WORLD_SEED, 2, seed, round(width_mm), i]).standard_normal(
            size
        )
        smooth = ndimage.gaussian_filter(noise, width_mm / (np.pi * np.sqrt(2)) / step, mode="wrap")
        smooth -= smooth.mean()
        smooth /= smooth.std()
        out[:, i] = ndimage.map_coordinates(
            smooth, ((mm - low) / step).T, order=3, mode="grid-wrap"
        )
    return out


_TEMPLATE: dict[str, tuple[NDArray[np.float32], NDArray[np.float64]]] = {}


def template() -> dict[str, tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """The MNI152 brain and its posterior grey matter, axes S, A, R, with voxel-to-millimetre
    matrices.

    The visual mask is grey matter behind A = -32 mm and above the tentorium, taken as the plane
    S = -22 mm - 0.25 (A + 60 mm).
    """
    if not _TEMPLATE:
        # nilearn carries the template in its package; nothing is fetched.
        from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template

        brain, grey = load_mni152_brain_mask(resolution=2), load_mni152_gm_template(resolution=2)
        vox2mm = np.eye(4)
        vox2mm[:3] = grey.affine[[2, 1, 0]][:, [2, 1, 0, 3]]
        grey_data = np.ascontiguousarray(grey.get_fdata(dtype=np.float32).T)
        s, a, _ = np.moveaxis(np.indices(grey_data.shape), 0, -1).reshape(-1, 3).T
        s_mm, a_mm = vox2mm[0, 3] + 2 * s, vox2mm[1, 3] + 2 * a
        visual = (a_mm < -32) & (s_mm > -22 - 0.25 * (a_mm + 60))
        _TEMPLATE["brain"] = (np.ascontiguousarray(brain.get_fdata(dtype=np.float32).T), vox2mm)
        _TEMPLATE["visual"] = (grey_data * visual.reshape(grey_data.shape), vox2mm)
    return _TEMPLATE
