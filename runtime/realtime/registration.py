"""Rigid registration of a run's volumes to its reference, once for each TR.

Gauss-Newton in its inverse form (Baker and Matthews 2004, doi:10.1023/B:VISI.0000011205.11775.fd):
the gradient is taken once, at fixed points of the reference, so that a step costs no more than
samples of the volume at the moved points. A gain and an offset are fitted along, residuals are
weighted after Huber. Both volumes are smoothed by about one voxel, and the points lie between the
voxels as often as on them, in the reference as in the volume: linear interpolation then blurs both
alike, and pulls to no side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...kernels import sample_volume
from ..errors import InputError
from ..volume import Volume
from .rigid import Matrix, closest_turn, rigid_matrix, rigid_parameters
from .smoothing import smooth

Vector = NDArray[np.float64]

POINTS = 10_000
"""Points that are compared; more of them make it slower and hardly more exact."""
CANDIDATES = 4
"""Points are drawn at random from this many times as many voxels of the steepest gradient, so that
they cover the head and not only its rim."""
SMOOTHING = 0.85
"""Standard deviation of the smoothing, in edges of the reference's longest voxel."""
MOST_STEPS = 40
SMALL_MM, SMALL_RAD = 1e-3, 2e-5
"""A step smaller than both is the last."""
HUBER = 2.0
"""Residuals beyond this many standard deviations count less."""
LEAST_VOXELS = 100
PYRAMID_MM: tuple[float | None, ...] = (9.0, 5.0, None)
"""Smoothing from coarse to fine where motion may be large; None is that of the voxels' size."""
LEAST_SIMILARITY = 0.7
"""Correlation of a run's reference with a bundle's, after registration."""
LEAST_INSIDE = 0.3
"""Share of the points that must lie inside the volume."""
_OUTSIDE = np.float32(-3e38)
_EDGE_VOXELS = 2
"""Faces of the reference within which no point is drawn: a gradient is not known there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """How a volume lies to the reference."""

    matrix: Matrix
    """(4, 4) rigid, reference world to volume world in millimetres. A kernel's matrix from model to
    source voxels is `inv(volume affine) @ matrix @ (model voxel to reference world)`."""
    parameters: Vector
    """(6,) shifts in millimetres, and angles in radians about x, y and z through the middle of the
    reference's points."""
    similarity: float
    """Correlation of volume and reference over the points, -1 to 1."""
    steps: int
    converged: bool
    """False if too few points lie inside the volume, or the last step was not small."""


class Registration:
    """Finds how volumes lie to one reference.

    Parameters
    ----------
    reference : Volume
    sigma_mm : float, optional
        Standard deviation of the smoothing; from the voxels' size if None. More of it finds larger
        motion, less exactly.
    threads : int
        Most CPU threads of the sampler.

    Raises
    ------
    InputError
        The reference has fewer than 5 voxels along an axis, or shows no gradient.
    """

    def __init__(
        self, reference: Volume, *, sigma_mm: float | None = None, threads: int = 1
    ) -> None:
        affine = reference.affine
        longest = float(_voxel_mm(affine).max())
        self.sigma_mm = SMOOTHING * longest if sigma_mm is None else sigma_mm
        self._threads = threads
        smoothed = self._smoothed(reference)
        gradient = _gradient(smoothed, affine, reference.name)
        points = _choose_points(gradient, reference.name)
        world = points @ affine[:3, :3].T + affine[:3, 3]
        self.centre_mm: Vector = world.mean(axis=0)
        self._world = world
        self._values = sample_volume(smoothed, points, threads=threads).astype(np.float64)
        slope = np.stack(
            [sample_volume(part, points, threads=threads) for part in gradient], axis=-1
        ).astype(np.float64)
        # how the reference's values change with shift, turn, gain and offset: (N, 8)
        jacobian = np.concatenate(
            [
                slope,
                np.cross(world - self.centre_mm, slope),
                self._values[:, None],
                np.ones((len(points), 1)),
            ],
            axis=1,
        )
        self._scale = np.linalg.norm(jacobian, axis=0)
        self._jacobian = jacobian / self._scale

    def register(self, volume: Volume, start: Matrix | None = None) -> Alignment:
        """Register one volume.

        Parameters
        ----------
        volume : Volume
            Of any shape and place.
        start : (4, 4) float64, optional
            Where to begin, such as the matrix of the volume before; the reference's own place if
            None.

        Returns
        -------
        alignment : Alignment
            A volume that cannot be registered is reported by `converged`, never raised.
        """
        smoothed = self._smoothed(volume)
        to_voxel = np.linalg.inv(volume.affine)
        matrix = np.eye(4) if start is None else np.array(start, np.float64)
        gain, offset, converged, steps = 1.0, 0.0, False, 0
        samples, inside = self._samples(smoothed, to_voxel @ matrix)
        while steps < MOST_STEPS and not converged:
            if inside.mean() < LEAST_INSIDE:
                break
            residual = np.where(inside, samples - (gain * self._values + offset), 0.0)
            change = self._solve(residual, inside)
            if change is None:
                break
            gain, offset = gain + change[6], offset + change[7]
            if gain <= 0:
                break
            step = change[:6] / gain
            matrix = matrix @ np.linalg.inv(rigid_matrix(step, self.centre_mm))
            matrix[:3, :3] = closest_turn(matrix[:3, :3])
            steps += 1
            converged = bool(
                np.abs(step[:3]).max() < SMALL_MM and np.abs(step[3:]).max() < SMALL_RAD
            )
            samples, inside = self._samples(smoothed, to_voxel @ matrix)
        return Alignment(
            matrix=matrix,
            parameters=rigid_parameters(matrix, self.centre_mm),
            similarity=_correlation(samples[inside], self._values[inside]),
            steps=steps,
            converged=converged and bool(inside.mean() >= LEAST_INSIDE),
        )

    def _smoothed(self, volume: Volume) -> NDArray[np.float32]:
        data = np.asarray(volume.data, np.float32)
        if (volume.slope, volume.inter) != (1.0, 0.0):
            data = data * np.float32(volume.slope) + np.float32(volume.inter)
        return smooth(data, (self.sigma_mm / _voxel_mm(volume.affine)).tolist())

    def _samples(
        self, smoothed: NDArray[np.float32], to_voxel: Matrix
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Values at the moved points, and which of them lie inside the volume."""
        points = self._world @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        samples = sample_volume(smoothed, points, fill=float(_OUTSIDE), threads=self._threads)
        return samples, samples != _OUTSIDE

    def _solve(self, residual: Vector, inside: NDArray[np.bool_]) -> Vector | None:
        """The (8,) change that explains the residual best; None if nothing determines it."""
        spread = 1.4826 * float(np.median(np.abs(residual[inside])))
        limit = HUBER * max(spread, np.finfo(np.float32).tiny)
        weight = np.where(inside, limit / np.maximum(np.abs(residual), limit), 0.0)
        weighted = self._jacobian * weight[:, None]
        try:
            change = np.linalg.solve(weighted.T @ self._jacobian, weighted.T @ residual)
        except np.linalg.LinAlgError:
            return None
        return change / self._scale if np.isfinite(change).all() else None


def align_reference(reference: Volume, model: Volume, *, threads: int = 1) -> Alignment:
    """Register a run's reference to the reference image of a bundle, once before the run.

    Parameters
    ----------
    reference : Volume
        The run's reference.
    model : Volume
        The bundle's image, of like contrast, on any grid.

    Returns
    -------
    alignment : Alignment
        Its matrix maps the model's world to the reference's.

    Raises
    ------
    InputError
        They do not match: no convergence, or a correlation below `LEAST_SIMILARITY`.
    """
    shifted = np.eye(4)
    shifted[:3, 3] = _middle(reference) - _middle(model)
    starts = [np.eye(4), shifted]
    best: Alignment | None = None
    for sigma_mm in PYRAMID_MM:
        registration = Registration(model, sigma_mm=sigma_mm, threads=threads)
        found = [registration.register(reference, start) for start in starts]
        best = max(found, key=lambda one: one.similarity)
        starts = [best.matrix]
    assert best is not None
    if not best.converged or best.similarity < LEAST_SIMILARITY:
        raise InputError(
            f"{reference.name} does not match {model.name}: correlation {best.similarity:.2f} "
            f"after registration, expected at least {LEAST_SIMILARITY}; pass the transform between "
            "them (ITK, FSL or AFNI), or check that both show the same subject in like contrast"
        )
    return best


def _voxel_mm(affine: Matrix) -> Vector:
    return np.linalg.norm(affine[:3, :3], axis=0)


def _gradient(smoothed: NDArray[np.float32], affine: Matrix, name: str) -> NDArray[np.float32]:
    """(3, X, Y, Z) change of the values along world x, y and z, in units a millimetre."""
    if min(smoothed.shape) < 2 * _EDGE_VOXELS + 1:
        raise InputError(
            f"{name}: {smoothed.shape} voxels are too few to register; expected at least "
            f"{2 * _EDGE_VOXELS + 1} along each axis"
        )
    along = np.stack([np.gradient(smoothed, axis=axis) for axis in range(3)])
    to_voxel = np.linalg.inv(affine[:3, :3]).astype(np.float32)
    return np.einsum("vw,vxyz->wxyz", to_voxel, along)


def _choose_points(gradient: NDArray[np.float32], name: str) -> NDArray[np.float64]:
    """(N, 3) voxel coordinates near voxels of steep gradient, shifted by up to half a voxel."""
    steepness = (gradient**2).sum(axis=0)
    inner = np.zeros(steepness.shape, bool)
    inner[(slice(_EDGE_VOXELS, -_EDGE_VOXELS),) * 3] = True
    voxels = np.flatnonzero(inner & (steepness > 0))
    if voxels.size < LEAST_VOXELS:
        raise InputError(
            f"{name}: {voxels.size} voxels differ from their neighbours, expected at least "
            f"{LEAST_VOXELS}; it cannot serve as a reference"
        )
    rng = np.random.default_rng(0)  # the same points for the same reference
    count = min(POINTS, voxels.size)
    steepest = voxels[np.argsort(steepness.ravel()[voxels], kind="stable")[::-1]]
    chosen = rng.choice(steepest[: CANDIDATES * count], count, replace=False)
    points = np.stack(np.unravel_index(np.sort(chosen), steepness.shape), axis=-1)
    return points + rng.uniform(-0.5, 0.5, points.shape)


def _middle(volume: Volume) -> Vector:
    """World position of the volume's centre of brightness."""
    weight = np.maximum(np.asarray(volume.data, np.float64) * volume.slope + volume.inter, 0)
    total = max(float(weight.sum()), np.finfo(np.float64).tiny)
    voxel = [
        float((weight.sum(axis=tuple(a for a in range(3) if a != axis)) * np.arange(size)).sum())
        / total
        for axis, size in enumerate(weight.shape)
    ]
    return volume.affine[:3, :3] @ voxel + volume.affine[:3, 3]


def _correlation(a: NDArray[np.float32], b: Vector) -> float:
    if a.size < 2:
        return 0.0
    a, b = a - a.mean(dtype=np.float64), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0
