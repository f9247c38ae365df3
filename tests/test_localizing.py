"""Encoders that only localize: what they are made to read in training, and the statistics that they
add to a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scanside.export.reference import localizing
from scanside.export.reference.encoder import on_voxels
from scanside.export.reference.geometry import STEPS, add_statistics, to_volume, write_geometry
from scanside.export.reference.localizing import Placing, config
from scanside.export.reference.sampler import patterns_of, smooth_patterns
from scanside.export.reference.trials import active_cubes, to_cubes
from scanside.export.reference.world import GRID
from scanside.export.vit3d import ViT3D

CUBES, BATCH = 5, 6


class FakeSampler:
    """Cubes of a single pattern each, of which two see place 3."""

    cube, patterns, active = 10, 8, torch.arange(CUBES)

    def shares(self) -> Tensor:
        out = torch.zeros(CUBES, 9)
        out[0, 3], out[1, 3], out[1, 4], out[2:, 0] = 1, 0.25, 0.75, 1
        return out

    def batch(self, scenes: object, rng: np.random.Generator) -> Tensor:
        del scenes
        return torch.from_numpy(rng.standard_normal((BATCH, CUBES, self.patterns), np.float32))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Placing:
    torch.manual_seed(0)
    monkeypatch.setattr(localizing, "LinearDecoder", lambda _: lambda t: t.sum((1, 2))[:, None] @ F)
    encoder = ViT3D(config(10, CUBES))
    encoder.patch_embed = nn.Linear(FakeSampler.patterns, encoder.config.hidden_size)
    targets = SimpleNamespace(clip=torch.zeros(4, 128))
    return Placing(encoder, FakeSampler(), targets)  # pyright: ignore[reportArgumentType]


F = torch.arange(67.0)[None] + 1
"""What the made-up linear decoder says of every feature."""


def test_the_last_layer_knows_of_a_trial_what_its_cubes_say(model: Placing):
    hidden = torch.randn(BATCH, CUBES + 1, 64)
    kept = torch.tensor([0, 2, 3])
    before = model.from_cubes(hidden, kept)
    changed = hidden.clone()
    changed[2, 0] = torch.randn(64)  # the class token
    moved = (model.from_cubes(changed, kept) - before).abs().amax(1) > 1e-6
    assert moved.tolist() == [False, False, False, True, False, False]
    changed = hidden.clone()
    changed[2, 1 + 2] = torch.randn(64)  # a cube that is kept
    moved = (model.from_cubes(changed, kept) - before).abs().amax(1) > 1e-6
    assert moved.tolist() == [False, False, True, False, False, False]
    changed = hidden.clone()
    changed[2, 1 + 1] = torch.randn(64)  # one that is not
    assert torch.equal(model.from_cubes(changed, kept), before)


def test_a_cube_is_asked_for_what_it_sees_as_far_as_it_sees_it(model: Placing):
    estimate = torch.zeros(1, 67)
    estimate[0, 3 * 7 + 2] = 1  # a colour at place 3
    seen = model._seen(estimate)[0]
    assert seen.shape == (CUBES, 7)
    assert seen[:, 2].tolist() == [1, 0.25, 0, 0, 0]
    assert seen.sum() == 1.25


def test_every_part_of_the_loss_teaches_the_encoder(model: Placing):
    tokens = FakeSampler().batch(None, np.random.default_rng(1))
    loss = model(tokens, torch.randn(BATCH, 128), torch.arange(3))
    loss.backward()
    for name, parameter in model.encoder.named_parameters():
        if not name.startswith(("f_wv", "f_t")) and "k.bias" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("cube", [10, 12])
def test_an_embedding_of_patterns_is_one_of_voxels(cube: int):
    count = patterns_of(cube)
    assert count == {10: 47, 12: 81}[cube]
    patterns = smooth_patterns(count, cube)
    np.testing.assert_allclose(patterns @ patterns.T, np.eye(count), atol=1e-5)
    embed = nn.Linear(count, 6)
    voxels = torch.randn(3, cube**3)
    with torch.no_grad():
        told = on_voxels(embed, cube)(voxels)
        np.testing.assert_allclose(told, embed(voxels @ patterns.T), atol=1e-4)


@pytest.mark.parametrize("cube", [10, 12, 14])
def test_cubes_of_every_size_go_back_to_where_they_were_cut(cube: int):
    volume = torch.randn(GRID)
    mask = np.zeros(GRID, bool)
    mask[20:60, 10:50, 20:60] = True
    active = active_cubes(mask, cube)
    back = to_volume(to_cubes(volume[None], active, cube)[0], active, cube)
    there = back != 0
    assert torch.equal(back[there], volume[there])
    assert there.numpy()[mask].mean() > 0.95


def test_another_encoder_adds_statistics_where_there_are_none(tmp_path: Path):
    def some(cube: int, active: list[int], value: float) -> SimpleNamespace:
        std = torch.full((len(active), cube**3), value)
        std[:, 0] = 0  # a voxel that is switched off
        return SimpleNamespace(cube=cube, active=torch.tensor(active), mean=2 * std, std=std)

    write_geometry(some(14, [100], 0.5), tmp_path)  # pyright: ignore[reportArgumentType]
    old = {n: _read(tmp_path, n) for n in ("mean", "std")}
    add_statistics(some(10, [200, 210], 1 + STEPS["std"] / 4), tmp_path)  # pyright: ignore[reportArgumentType]
    new = {n: _read(tmp_path, n) for n in ("mean", "std")}
    for name, value in {"std": 1.0, "mean": 2.0}.items():
        kept = old["std"] > 0
        np.testing.assert_array_equal(new[name][kept], old[name][kept])
        added = new[name][~kept & (new["std"] > 0)]
        assert len(added) > 1000
        # a quarter of a step is rounded away
        assert set(np.unique(added)) == {value}


def _read(checkpoint: Path, name: str) -> np.ndarray:
    image = nib.Nifti1Image.from_filename(checkpoint / f"geometry/{name}.nii.gz")
    return np.asarray(image.dataobj)
