"""From a volume to an encoder's tokens: where it lies, then one pass of the resample kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import Geometry, Resampler, resize_matrix
from ..kernels.compiled import CompiledKernels, NoCodeError
from .errors import BundleError, DeviceError, InputError, MissingExtraError
from .manifest import EncoderSpec
from .volume import Volume

Matrix = NDArray[np.float64]
_VOXELS = 1 << 12
"""Voxels that are looked at together."""


class Preprocessor:
    """Makes the tokens of one encoder.

    Parameters
    ----------
    spec : EncoderSpec
        Geometry, mapping and normalisation.
    arrays : mapping
        active (N,) int64; mean and inv_std (N, C) where the normalisation is "voxel".
    scale : float
        Turns the values of a volume into the units of the bundle.
    threads : int
        CPU threads; fewer are used where a volume is too little work for them.
    device : {"cpu", "cuda"}
    kernels : CompiledKernels, optional
        Those of the bundle, which "cuda" needs.

    Raises
    ------
    BundleError
        Arrays that do not fit the geometry, or no kernels where they are needed.
    DeviceError
        There is no GPU that the kernels run on.
    MissingExtraError
        The native code is not built, or cuda-python is not installed.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        arrays: Mapping[str, NDArray[Any]],
        scale: float,
        threads: int = 1,
        *,
        device: str = "cpu",
        kernels: CompiledKernels | None = None,
    ) -> None:
        grid = spec.geometry
        self._grid = grid
        self.scale = self._scale = scale
        self._affine = _checked_affine(grid.affine)
        self._orientation = _checked_orientation(grid.axcodes)
        wanted = ["active"] if spec.normalisation == "none" else ["active", "mean", "inv_std"]
        missing = [name for name in wanted if name not in arrays]
        if missing:
            raise BundleError(f"{spec.arrays} lacks {', '.join(missing)}; export the bundle again")
        try:
            x, y, z = grid.grid
            self.geometry = Geometry(
                grid=(x, y, z), cube=grid.cube, active=arrays["active"], pad=grid.pad
            )
        except ValueError as exc:
            raise BundleError(f"{spec.arrays}: {exc}") from exc
        if (1, *self.geometry.shape) != spec.inputs["tokens"].shape:
            raise BundleError(
                f"{spec.arrays} makes tokens of shape {self.geometry.shape}, but {spec.file} takes "
                f"{spec.inputs['tokens'].shape[1:]}; export the bundle again"
            )
        self.statistics = statistics = {name: arrays[name] for name in wanted if name != "active"}
        """mean and inv_std (N, C), or none."""
        if device == "cuda" and kernels is None:
            raise BundleError("the bundle has no kernels for a GPU; export it again, or use 'cpu'")
        self.kernels = folder = kernels and kernels.folder
        """Folder of the compiled kernels that make the tokens, None on the CPU."""
        try:
            self._raw, self._normalised = (
                Resampler(self.geometry, **given, impl=device, threads=threads, kernels=folder)
                for given in ({}, statistics)
            )
        except (NoCodeError, RuntimeError) as exc:
            raise DeviceError(str(exc)) from exc
        except ValueError as exc:
            raise BundleError(f"{spec.arrays}: {exc}; export the bundle again") from exc
        except ImportError as exc:
            raise MissingExtraError(str(exc)) from exc
        self.provider = {"cpu": "native C", "cuda": "CUDA kernel"}[device]
        """What makes the tokens."""
        masked = statistics.get("inv_std")
        self.live = self.geometry.in_grid & (True if masked is None else masked != 0)
        """(N, C) elements of the tokens that are voxels of the grid and not masked."""
        self._last: tuple[tuple[int, ...], bytes, Matrix] | None = None

    def tokens(self, volume: Volume, *, normalised: bool = True) -> NDArray[np.float32]:
        """Tokens of a volume.

        Parameters
        ----------
        volume : Volume
        normalised : bool
            False leaves out the statistics: raw tokens in the bundle's units.

        Returns
        -------
        tokens : (N, C) float32

        Raises
        ------
        InputError
            The volume does not overlap the active part of the model grid, or its values become
            infinite once scaled and normalised.
        """
        resample = self._normalised if normalised else self._raw
        slope, inter = self.scaling(volume)
        try:
            tokens = resample(
                volume.data, model_to_source=self.model_to_source(volume), slope=slope, inter=inter
            )
        except RuntimeError as exc:  # of the driver
            raise DeviceError(str(exc)) from exc
        if not np.isfinite(tokens).all():
            raise self.too_large(volume)
        return tokens

    def scaling(self, volume: Volume) -> tuple[float, float]:
        """Slope and intercept from stored values to the bundle's units; InputError where these are
        no float32."""
        slope, inter = volume.slope * self._scale, volume.inter * self._scale
        if not max(abs(slope), abs(inter)) <= float(np.finfo(np.float32).max):
            raise self.too_large(volume)
        return slope, inter

    def too_large(self, volume: Volume) -> InputError:
        """What is said of a volume whose values become infinite."""
        return InputError(
            f"{volume.name}: its values become infinite with slope {volume.slope:g}, intercept "
            f"{volume.inter:g} and the bundle's scale {self._scale:g}; check header and units"
        )

    def close(self) -> None:
        """Free what lies on a GPU; may be called twice."""
        self._raw.close()
        self._normalised.close()

    def model_to_source(self, volume: Volume) -> Matrix:
        """The matrix of the volumes' place; a run of volumes shares one, so the last is kept."""
        shape, place = volume.data.shape, volume.affine.tobytes()
        if self._last is None or self._last[:2] != (shape, place):
            self._check_overlap(volume)
            self._last = (shape, place, self._map(volume))
        return self._last[2]

    def _map(self, volume: Volume) -> Matrix:
        if self._grid.mapping == "affine":
            return np.linalg.inv(volume.affine) @ self._affine
        from_oriented, shape = oriented(volume, self._orientation)
        return from_oriented @ resize_matrix(shape, self._grid.grid, self._grid.align_corners)

    def _check_overlap(self, volume: Volume) -> None:
        matrix = np.linalg.inv(volume.affine) @ self._affine
        last = np.array(volume.data.shape) - 0.5
        for voxels in self._voxels():  # mostly the first few settle it
            points = voxels @ matrix[:3, :3].T + matrix[:3, 3]
            if ((points >= -0.5) & (points <= last)).all(axis=1).any():
                return
        centre = volume.affine @ [*((np.array(volume.data.shape) - 1) / 2), 1]
        wanted = self._affine @ [*np.concatenate(list(self._voxels())).mean(axis=0), 1]
        raise InputError(
            f"{volume.name}: its field of view, centred at {_mm(centre)}, does not "
            f"overlap what the model reads, centred at {_mm(wanted)}; check its affine"
        )

    def _voxels(self) -> Iterator[NDArray[np.int64]]:
        """Voxels of the grid that the encoder reads, (V, 3), a few thousand at a time: all of them
        would be more memory than the encoder.
        """
        geometry, at_a_time = self.geometry, max(1, _VOXELS // self.geometry.shape[1])
        for first in range(0, geometry.shape[0], at_a_time):
            end = first + at_a_time
            yield geometry.voxels_of(first, end)[geometry.in_grid[first:end]]


def oriented(volume: Volume, orientation: NDArray[Any]) -> tuple[Matrix, tuple[int, ...]]:
    """A volume's grid with its axes in another order and direction.

    Parameters
    ----------
    volume : Volume
    orientation : (3, 2) float
        World axis and direction of each wanted axis, in nibabel's notation.

    Returns
    -------
    from_oriented : (4, 4) float64
        Oriented voxels to stored voxels: a permutation with flips.
    shape : (3,) int
        Shape of the oriented grid.
    """
    from nibabel.orientations import inv_ornt_aff, io_orientation, ornt_transform

    turn = ornt_transform(io_orientation(volume.affine), orientation)
    shape = [0, 0, 0]
    for axis, target in enumerate(turn[:, 0].astype(int)):
        shape[target] = volume.data.shape[axis]
    return inv_ornt_aff(turn, volume.data.shape), tuple(shape)


def _checked_affine(rows: Sequence[Sequence[float]]) -> Matrix:
    affine = np.array(rows, np.float64)
    if affine.shape != (4, 4) or not np.linalg.det(affine):
        raise BundleError("manifest.json: the geometry's affine must be 4x4 and not singular")
    return affine


def _checked_orientation(axcodes: str) -> NDArray[Any]:
    from nibabel.orientations import axcodes2ornt

    pairs = [sorted(pair & set(axcodes)) for pair in ({"L", "R"}, {"P", "A"}, {"I", "S"})]
    if len(axcodes) != 3 or any(len(pair) != 1 for pair in pairs):
        raise BundleError(f"manifest.json: axcodes must be like RAS or SAR; got {axcodes!r}")
    return axcodes2ornt(tuple(axcodes))


def _mm(point: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{x:.0f}" for x in point[:3]) + ") mm"
