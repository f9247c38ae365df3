"""One volume of a run into the running fit: aligned, resampled once, cut into tokens, added.

    frame -- registration -- motion -+- resample kernel -- tokens --------+- GLM
                                     +- samples outside the mask -- noise +

Nothing of a volume is kept but what the fit needs. What was found about a volume (`Taken`) can be
written down and given back: a run that is resumed takes its volumes in without registering them
again, and to the last bit as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from ...kernels import Resampler, sample_volume
from ..errors import InputError
from ..preprocess import Preprocessor
from ..volume import Volume, load_volume
from .frame import Frame
from .glm import StreamingGlm
from .model_place import Matrix, Placing, model_to_reference
from .motion import MotionMonitor
from .noise_components import noise_points
from .registration import Registration
from .rigid import source_matrix

Vector = NDArray[np.float64]


class UnusableVolume(InputError):
    """A volume whose values are none; the run goes on without it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """What was found about a volume."""

    number: int
    """From the first kept volume."""
    matrix: Matrix
    """(4, 4) world of the run's reference to that of the volume."""
    parameters: Vector
    """(6,) shifts in millimetres, angles in radians."""
    displacement_mm: float
    dvars: float
    spike: bool
    """The volume has no weight."""
    registered: bool
    """False if registration failed; the place of the volume before was taken."""
    in_time: bool = True
    """False if it came too late to change the sums."""

    def as_record(self) -> dict[str, Any]:
        """As a journal holds it; numbers come back exactly."""
        return {
            "matrix": self.matrix[:3].tolist(),
            "motion": self.parameters.tolist(),
            "displacement_mm": self.displacement_mm,
            "dvars": self.dvars,
            "spike": self.spike,
            "registered": self.registered,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Place:
    """What is known from the run's reference on."""

    number: int
    registration: Registration | None
    model_to_world: Matrix
    noise_mm: NDArray[np.float64]


class Intake:
    """Takes in the volumes of one attempt at a run.

    Parameters
    ----------
    preprocessor : Preprocessor
        Of the encoder; its geometry is that of the tokens.
    model_affine : (4, 4) float64
        Voxels of the model grid to the bundle's world.
    inv_std : (N, C) float32, optional
        0 masks an element, which then is not fitted.
    placing : Placing
    correct_motion : bool
    threads : int
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        model_affine: Matrix,
        inv_std: NDArray[np.float32] | None,
        placing: Placing,
        *,
        correct_motion: bool = True,
        threads: int = 1,
    ) -> None:
        self._preprocessor = preprocessor
        self._geometry = preprocessor.geometry
        self._model_affine = model_affine
        self._inv_std = inv_std
        self._placing = placing
        self._correct_motion = correct_motion
        self._threads = threads
        read = self._geometry.in_grid
        self.elements = np.flatnonzero(read if inv_std is None else read & (inv_std > 0))
        """(E,) which elements of the flat tokens are fitted."""
        self._resample = Resampler(self._geometry, impl="cpu", threads=threads)
        # written anew by each volume; fresh memory would cost page faults every time
        self._tokens = np.empty(self._geometry.shape, np.float32)
        self.begin()

    def begin(self) -> None:
        """Forget the run; the next volume is the reference."""
        self._place: _Place | None = None
        self._monitor = MotionMonitor()
        self._last = np.eye(4), np.zeros(6)
        self._seen = 0
        self.brightness = np.zeros(self.elements.size, np.float32)
        """(E,) mean of the volumes so far."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """(3,) of the model grid."""
        return self._geometry.grid

    @property
    def voxels(self) -> NDArray[np.int64]:
        """(E, 3) where on the model grid the fitted elements are."""
        return self._geometry.voxels.reshape(-1, 3)[self.elements]

    @property
    def model_to_world(self) -> Matrix | None:
        """(4, 4) voxels of the model grid to the world of the run; None before its reference."""
        return None if self._place is None else self._place.model_to_world

    def take(
        self, frame: Frame, number: int, glm: StreamingGlm, known: Mapping[str, Any] | None = None
    ) -> Taken:
        """Take in one volume.

        Parameters
        ----------
        frame : Frame
        number : int
            Counted from the first kept volume.
        glm : StreamingGlm
            Gets its tokens.
        known : mapping, optional
            What an earlier life of the run found about it, as `Taken.as_record` gave it.

        Raises
        ------
        UnusableVolume
            All zero, or not finite.
        InputError
            A reference in which the model cannot be found.
        """
        volume = _as_volume(frame)
        if self._place is None:
            self._place = self._find_place(volume, number)
        place = self._place
        taken = self._align(place, volume, number, known)
        matrix = source_matrix(volume.affine, taken.matrix, place.model_to_world)
        tokens = self._resample(
            volume.data,
            model_to_source=matrix,
            slope=volume.slope,
            inter=volume.inter,
            out=self._tokens,
        )
        values = np.take(tokens, self.elements)
        if not np.isfinite(values).all():
            raise UnusableVolume("its values become infinite with its slope and intercept")
        # what is known already counts too: the next volume's movement is measured from here
        moved = self._monitor.see(taken.parameters, values)
        if known is None:
            taken = replace(
                taken,
                displacement_mm=moved.displacement_mm,
                dvars=moved.dvars,
                spike=moved.spike or not taken.registered,
            )
        to_voxel = np.linalg.inv(volume.affine) @ taken.matrix
        points = place.noise_mm @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        noise = sample_volume(
            volume.data, points, slope=volume.slope, inter=volume.inter, threads=self._threads
        )
        in_time = glm.add_volume(
            number, values, motion=taken.parameters, noise=noise, spike=taken.spike
        )
        self._seen += 1
        self.brightness += (values - self.brightness) / np.float32(self._seen)
        return replace(taken, in_time=in_time)

    def retract(self, number: int) -> None:
        """A volume that was taken in turned out to be short; a short reference is no reference."""
        if self._place is not None and self._place.number == number:
            self.begin()

    def _find_place(self, volume: Volume, number: int) -> _Place:
        to_world = model_to_reference(volume, self._preprocessor, self._model_affine, self._placing)
        values = np.asarray(volume.data, np.float32) * np.float32(volume.slope)
        return _Place(
            number=number,
            registration=Registration(volume, threads=self._threads)
            if self._correct_motion
            else None,
            model_to_world=to_world,
            noise_mm=noise_points(
                values + np.float32(volume.inter),
                volume.affine,
                np.linalg.inv(volume.affine) @ to_world,
                self._geometry,
                self._inv_std,
            ),
        )

    def _align(
        self, place: _Place, volume: Volume, number: int, known: Mapping[str, Any] | None
    ) -> Taken:
        matrix, parameters = self._last
        registered = True
        displacement_mm, dvars, spike = 0.0, 0.0, False
        if known is not None:
            matrix = np.vstack([known["matrix"], [0.0, 0.0, 0.0, 1.0]])
            parameters = np.array(known["motion"], np.float64)
            displacement_mm, dvars = float(known["displacement_mm"]), float(known["dvars"])
            spike, registered = bool(known["spike"]), bool(known["registered"])
        elif place.registration is not None:
            found = place.registration.register(volume, matrix)
            if not found.converged:  # the last place may be the worse beginning
                found = place.registration.register(volume)
            registered = found.converged
            if registered:
                matrix, parameters = found.matrix, found.parameters
        if registered:
            self._last = matrix, parameters
        return Taken(
            number=number,
            matrix=matrix,
            parameters=parameters,
            displacement_mm=displacement_mm,
            dvars=dvars,
            spike=spike,
            registered=registered,
        )


def _as_volume(frame: Frame) -> Volume:
    """A frame as the kernel reads it, its axes in RAS order, which is a view and no copy.

    Registration picks its points in the order of the array, so a volume that is stored another way
    round would be aligned by other points, and a doubtful trial answered otherwise.
    """
    order = io_orientation(frame.affine)
    data = apply_orientation(frame.data, order)
    affine = frame.affine @ inv_ornt_aff(order, frame.data.shape)
    try:
        volume = load_volume((data, affine))
    except InputError as exc:
        raise UnusableVolume(str(exc)) from exc
    name = f"volume {frame.number + 1}"
    return replace(volume, slope=frame.slope, inter=frame.inter, name=name)
