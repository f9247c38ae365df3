"""A run of the reference world: a head in a scanner, in which the shipped trials happen again.

Each event plays one of the shipped activity maps, where the model reads it, stretched over the
run's grid as the bundle stretches a volume over its own: through the blood's response, on a head
with drift, noise that follows itself (AR(1)) and motion. What went in is known. It is a test kit
and no brain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels import Geometry, resize_matrix, sample_volume
from ..bundle import REFERENCE, Bundle
from ..demo.trials import Trial, read_trials
from ..errors import InputError
from ..volume import load_volume
from .hrf import Response
from .rigid import rigid_matrix
from .stimuli import Stimulus

Floats = NDArray[np.float32]

BRIGHTNESS = 4000.0
"""Of the head, in stored units."""
EVENT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What is simulated."""

    shape: tuple[int, int, int] = (64, 64, 36)
    voxel_mm: tuple[float, float, float] = (3.0, 3.0, 3.6)
    volumes: int = 200
    tr_s: float = 1.6
    gap_s: float = 12.0
    """Seconds between two onsets, give or take a quarter."""
    noise_percent: float = 0.5
    """Standard deviation of the noise of each voxel."""
    correlation: float = 0.3
    """Of the noise with that of the volume before."""
    drift_percent: float = 1.0
    motion_mm: float = 0.5
    """How far the head wanders, about; as many degrees."""
    inertia: int = 1
    """Volumes over which each of the head's steps is spread; 1 is a jerky head."""
    trials: tuple[str, ...] = ()
    """Names of the shipped trials that are played in turn; all of them if empty."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.volumes < 2 or min(self.shape) < 5 or self.gap_s <= 0 or self.inertia < 1:
            raise InputError(
                f"a simulated run needs 2 volumes, 5 voxels along each axis and a gap, and "
                f"'inertia' 1; got {self.volumes}, {self.shape}, {self.gap_s:g} s, {self.inertia}"
            )


class SimulatedRun:
    """A run, volume by volume.

    Parameters
    ----------
    config : Simulation
    trials : sequence of Trial, optional
        What is played in turn, instead of the shipped trials; `config.trials` chooses from these.

    Attributes
    ----------
    stimuli : list of Stimulus
        Their type is the name of the trial that they play.
    truths : list of Trial
        That trial of each.
    affine : (4, 4) float64
        Oblique, as scanners deliver it.
    """

    def __init__(self, config: Simulation, trials: Sequence[Trial] | None = None) -> None:
        self.config = config
        self.affine = _affine(config)
        given = read_trials(REFERENCE.parent / "trials") if trials is None else trials
        chosen = [t for t in given if not config.trials or t.name in config.trials]
        onsets = _onsets(config)
        self.truths: list[Trial] = [chosen[i % len(chosen)] for i in range(len(onsets))]
        self.stimuli = [
            Stimulus(onset_s=onset, duration_s=EVENT_S, name=truth.name)
            for onset, truth in zip(onsets, self.truths, strict=True)
        ]
        self.head = _head(config)
        read = _stretched(_read_by_model(), config.shape)
        self._maps = {}
        for trial in chosen:
            volume = load_volume(trial.volume)
            percent = np.asarray(volume.data, np.float32) * np.float32(volume.slope)
            self._maps[trial.name] = read * _stretched(percent, config.shape)
        rng = np.random.default_rng([config.seed, 1])
        steps = rng.normal(0, 1, (config.volumes, 6))
        spread = [steps[max(0, n + 1 - config.inertia) : n + 1].sum(0) for n in range(len(steps))]
        steps = np.cumsum(spread, axis=0)
        steps -= steps[0]
        scale = config.motion_mm / max(1e-9, float(np.abs(steps).max()))
        self.motion: NDArray[np.float64] = scale * steps
        """(T, 6) true motion: millimetres and degrees."""

    def volumes(self) -> Iterator[NDArray[np.int16]]:
        """(X, Y, Z) int16, one after another."""
        config = self.config
        rng = np.random.default_rng([config.seed, 2])
        noise = np.zeros(config.shape, np.float32)
        fresh = math.sqrt(1 - config.correlation**2)
        points = np.moveaxis(np.indices(config.shape, dtype=np.float64), 0, -1)
        points = points.reshape(-1, 3)
        middle = self.affine @ [*((np.array(config.shape) - 1) / 2), 1]
        for volume in range(config.volumes):
            white = rng.standard_normal(config.shape, dtype=np.float32)
            keep = config.correlation if volume else 0.0
            noise = np.float32(keep) * noise + np.float32(fresh if volume else 1.0) * white
            still = self.head * (1 + np.float32(0.01) * self._activity(volume))
            shift = self.motion[volume] * ([1.0] * 3 + [math.pi / 180] * 3)
            moved = np.linalg.inv(rigid_matrix(shift, middle[:3]))
            to_voxel = np.linalg.inv(self.affine) @ moved @ self.affine
            where = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
            seen = sample_volume(still, where, threads=1).reshape(config.shape)
            seen += np.float32(0.01 * config.noise_percent * BRIGHTNESS) * noise
            yield np.rint(np.maximum(seen, 1)).astype(np.int16)

    def _activity(self, volume: int) -> Floats:
        """Percent of the brightness, (X, Y, Z)."""
        config = self.config
        response = Response.glover(config.tr_s)
        times = np.arange(0, EVENT_S + response.length_s, 0.1)
        height = max(response.at(float(time), 0.0, EVENT_S) for time in times)
        now_s = (volume + 0.5) * config.tr_s
        slow = math.sin(2 * math.pi * 1.3 * volume / config.volumes)
        out = np.full(config.shape, config.drift_percent * slow, np.float32)
        for stimulus in self.stimuli:
            weight = response.at(now_s, stimulus.onset_s, stimulus.duration_s) / height
            if weight:
                out += np.float32(weight) * self._maps[stimulus.name]
        return out

    def write(self, path: Path) -> Path:
        """Write the run as 4-D NIfTI, and its events beside it; the path of the events.

        Parameters
        ----------
        path : Path
            Ends with _bold.nii or _bold.nii.gz, or just .nii; the events are called alike.
        """
        import nibabel as nib

        data = np.stack(list(self.volumes()), axis=-1)
        image: Any = nib.Nifti1Image(data, self.affine)
        image.header.set_zooms((*self.config.voxel_mm, self.config.tr_s))
        image.header.set_xyzt_units("mm", "sec")
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        stem = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_bold")
        events = path.with_name(f"{stem}_events.tsv")
        rows = [f"{s.onset_s:g}\t{s.duration_s:g}\t{s.name}" for s in self.stimuli]
        events.write_text("\n".join(["onset\tduration\ttrial_type", *rows]) + "\n")
        return events


def _affine(config: Simulation) -> NDArray[np.float64]:
    """Axial slices, tilted, centred on the world's origin."""
    tilt = math.radians(-8.0)
    turn = np.array(
        [
            [1.0, 0.0, 0.0],
            [0.0, math.cos(tilt), -math.sin(tilt)],
            [0.0, math.sin(tilt), math.cos(tilt)],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * config.voxel_mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(config.shape) - 1) / 2)
    return affine


def _head(config: Simulation) -> Floats:
    """A bright ellipsoid with smooth structure inside, in stored units."""
    rng = np.random.default_rng([config.seed, 3])
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in config.shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))  # (3, X, Y, Z)
    radius = np.sqrt(
        np.square(grid / np.array([0.92, 0.95, 0.92], np.float32)[:, None, None, None]).sum(0)
    )
    inside = 1 / (1 + np.exp((radius - 1) / 0.04))
    structure = np.zeros(config.shape, np.float32)
    for _ in range(24):
        wave = rng.normal(0, 5, 3).astype(np.float32)
        structure += np.cos(np.tensordot(wave, grid, 1) + np.float32(rng.uniform(0, 6.3)))
    structure *= np.float32(0.08 / structure.std())
    return (np.float32(BRIGHTNESS) * inside * (1 + structure)).astype(np.float32)


def _onsets(config: Simulation) -> list[float]:
    """Seconds, to a tenth; no regular beat, which would be like drift or noise."""
    rng = np.random.default_rng([config.seed, 4])
    onsets: list[float] = []
    onset = 2 * config.tr_s
    while onset < (config.volumes - 2) * config.tr_s:
        onsets.append(round(onset, 1))
        onset += config.gap_s * float(rng.uniform(0.75, 1.25))
    return onsets


def _read_by_model() -> Floats:
    """1 where the reference bundle reads the brain, on its model grid in RAS order."""
    bundle = Bundle.open("reference")
    spec = bundle.manifest.encoder
    arrays = bundle.arrays(spec.arrays)
    x, y, z = spec.geometry.grid
    geometry = Geometry(
        grid=(x, y, z), cube=spec.geometry.cube, active=arrays["active"], pad=spec.geometry.pad
    )
    out = np.zeros(geometry.grid, np.float32)
    out[tuple(geometry.voxels[geometry.in_grid & (arrays["inv_std"] > 0)].T)] = 1
    return np.ascontiguousarray(out.T)  # the model's axes are S, A, R


def _stretched(values: Floats, shape: tuple[int, int, int]) -> Floats:
    """A volume on the run's grid, whole to whole; both are in RAS order."""
    x, y, z = values.shape
    to_source = resize_matrix((x, y, z), shape)
    points = np.moveaxis(np.indices(shape, dtype=np.float64), 0, -1).reshape(-1, 3)
    where = points @ to_source[:3, :3].T + to_source[:3, 3]
    return sample_volume(values, where, threads=1).reshape(shape)
