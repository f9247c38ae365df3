"""A head that moves in a simulated scanner, in which the true motion is known.

The MNI152 template is smoothed to about the resolution of the scan and sampled by cubic splines at
the moved positions, so that no error of the linear interpolation under test enters the truth; the
noise of every volume is its own.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Matrix = NDArray[np.float64]
CENTRE_MM = np.array([0.0, -18.0, 12.0])
"""About the middle of the template's brain, in its own millimetres."""
BRIGHTNESS = 1000.0


@lru_cache(maxsize=2)
def _coefficients(resolution_mm: float) -> tuple[NDArray[np.float32], Matrix]:
    """Spline of the template at this resolution, and its voxels' place in the world."""
    from nilearn.datasets import load_mni152_template

    template = load_mni152_template(resolution=1)
    values = np.asarray(template.dataobj, np.float32)
    values *= BRIGHTNESS / np.percentile(values[values > 0], 90)
    sigma = resolution_mm / 2.355  # millimetres are voxels here; the resolution is the FWHM
    # every second voxel defines the head as well: the spline through them is the truth
    smooth = ndimage.gaussian_filter(values, sigma, truncate=3.0)[::2, ::2, ::2]
    affine = template.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    return ndimage.spline_filter(smooth, order=3, output=np.float32), affine


def scanner_affine(shape: tuple[int, int, int], voxel_mm: tuple[float, float, float]) -> Matrix:
    """(4, 4) voxel to world of an axial scan about the head, its first axis running to the left and
    its slices tilted, as scanners deliver them."""
    tilt = np.radians(-12.0)
    turn = np.array([[-1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * voxel_mm
    affine[:3, 3] = CENTRE_MM - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


class SimulatedHead:
    """A head and a scan of it.

    Parameters
    ----------
    shape : (3,) int
    voxel_mm : (3,) float
    noise : float
        Standard deviation over the brain's brightness, so that 0.02 is a temporal SNR of 50.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (64, 64, 36),
        voxel_mm: tuple[float, float, float] = (3.0, 3.0, 3.6),
        noise: float = 0.02,
    ) -> None:
        self.shape = shape
        self.affine = scanner_affine(shape, voxel_mm)
        self.noise = noise
        self._spline, self._template_affine = _coefficients(float(min(voxel_mm)))
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
        self._world = grid @ self.affine[:3, :3].T + self.affine[:3, 3]

    def volume(self, moved: Matrix, rng: np.random.Generator | None) -> NDArray[np.float32]:
        """One volume (X, Y, Z) of the head after `moved`, a rigid matrix in world millimetres from
        where a point of the head was to where it is; without noise if `rng` is None."""
        at = np.linalg.inv(self._template_affine) @ np.linalg.inv(moved)
        points = self._world @ at[:3, :3].T + at[:3, 3]
        values = ndimage.map_coordinates(self._spline, points.T, order=3, prefilter=False)
        values = np.asarray(values, np.float32).reshape(self.shape)
        if rng is not None:
            values += np.float32(self.noise * BRIGHTNESS) * rng.standard_normal(
                self.shape, dtype=np.float32
            )
        return np.asfortranarray(values)


def rigid(parameters: NDArray[np.float64], centre_mm: NDArray[np.float64]) -> Matrix:
    """Rigid matrix of (x, y, z) millimetres and three angles in degrees about a centre: first about
    x, then y, then z."""
    x, y, z = np.radians(parameters[3:])
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(about_z) @ np.array(about_y) @ np.array(about_x)
    matrix[:3, 3] = parameters[:3] + centre_mm - matrix[:3, :3] @ centre_mm
    return matrix


def random_walk(volumes: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(T, 6) motion of a restless subject: slow drift to 3 mm and 3 degrees, small steps, and now
    and then a jerk that ends elsewhere."""
    steps = rng.normal(0, [0.05] * 3 + [0.05] * 3, (volumes, 6))
    jerks = rng.random(volumes) < 0.03
    steps[jerks] += rng.normal(0, 1.0, (int(jerks.sum()), 6))
    path = np.cumsum(steps, axis=0)
    path -= path[0]
    return np.clip(path, -3, 3)


def error(found: Matrix, true: Matrix) -> tuple[float, float]:
    """How far a rigid matrix is off: millimetres at the head's centre, and degrees."""
    off = np.linalg.inv(true) @ found
    turned = np.arccos(np.clip((np.trace(off[:3, :3]) - 1) / 2, -1, 1))
    moved = off[:3, :3] @ CENTRE_MM + off[:3, 3] - CENTRE_MM
    return float(np.linalg.norm(moved)), float(np.degrees(turned))
