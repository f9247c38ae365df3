"""A volume into the running fit, whichever way it is stored, and in a run that is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from scanside.runtime import Decoder
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.intake import Intake, Taken
from scanside.runtime.realtime.model_place import Placing
from scanside.runtime.realtime.simulated_run import SimulatedRun, Simulation

VOLUMES = 4


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder.open("reference", threads=1, warm=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    path = tmp_path_factory.mktemp("run") / "run_bold.nii"
    simulation = Simulation(shape=(22, 26, 20), voxel_mm=(7.0, 7.0, 7.0), volumes=VOLUMES)
    SimulatedRun(simulation).write(path)
    run = nib.load(path)
    data = np.asanyarray(run.dataobj)
    return [
        Frame(number=i, data=data[..., i], affine=run.affine, series="5", arrived_s=0.0)
        for i in range(VOLUMES)
    ]


class _Fit:
    """Keeps what it is given; stands where the streaming fit does."""

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []

    def add_volume(self, number: int, values: np.ndarray, **_: Any) -> bool:
        self.values.append(values)
        return True


def _taken(
    decoder: Decoder, frames: list[Frame], known: dict[int, dict] | None = None
) -> tuple[list[Taken], list[np.ndarray]]:
    spec = decoder.bundle.manifest.encoder
    intake = Intake(
        decoder.stages.preprocessor,
        np.array(spec.geometry.affine, np.float64),
        decoder.bundle.arrays(spec.arrays).get("inv_std"),
        Placing(),
    )
    fit = _Fit()
    found = [intake.take(f, f.number, fit, (known or {}).get(f.number)) for f in frames]
    return found, fit.values


def _stored(frame: Frame, codes: str) -> Frame:
    change = ornt_transform(io_orientation(frame.affine), axcodes2ornt(codes))
    data = nib.apply_orientation(frame.data, change)
    affine = frame.affine @ inv_ornt_aff(change, frame.data.shape)
    return Frame(number=frame.number, data=data.copy(), affine=affine, series="5", arrived_s=0.0)


@pytest.mark.parametrize("codes", ["LPS", "SAL"])
def test_the_way_a_volume_is_stored_does_not_matter(decoder, frames, codes):
    plain, values = _taken(decoder, frames)
    turned, others = _taken(decoder, [_stored(frame, codes) for frame in frames])
    for one, other in zip(plain, turned, strict=True):
        np.testing.assert_allclose(other.parameters, one.parameters, atol=1e-9)
    for one, other in zip(values, others, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-3)


def test_after_a_resume_movement_is_measured_from_the_last_volume_of_the_earlier_life(
    decoder, frames
):
    whole, _ = _taken(decoder, frames)
    known = {taken.number: taken.as_record() for taken in whole[:-1]}
    resumed, _ = _taken(decoder, frames, known)
    assert whole[-1].displacement_mm > 0
    assert whole[-1].dvars > 0
    assert resumed[-1].displacement_mm == pytest.approx(whole[-1].displacement_mm)
    assert resumed[-1].dvars == pytest.approx(whole[-1].dvars)
