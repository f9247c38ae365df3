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

from scanside.export.localizer import LocalizationSettings
from scanside.export.localizer_stages import autograd_relevance
from scanside.export.reference import localizing
from scanside.export.reference.encoder import on_voxels
from scanside.export.reference.features import COLOUR_AXES
from scanside.export.reference.geometry import STEPS, add_statistics, to_volume, write_geometry
from scanside.export.reference.localizing import Placing, config
from scanside.export.reference.relevance import (
    CONCEPTS,
    DIRECTIONS,
    PARTS,
    concepts_of,
    relevance,
)
from scanside.export.reference.sampler import Sampler, patterns_of, smooth_patterns
from scanside.export.reference.scenes import COLOURS, draw_scenes
from scanside.export.reference.trials import active_cubes, to_cubes
from scanside.export.reference.world import GRID
from scanside.export.vit3d import ViT3D

CUBES, BATCH = 5, 6
SPREAD = 0.5
"""Of the made-up linear decoder's estimates."""


class FakeSampler:
    """Cubes of a single pattern each, of which two see place 3."""

    cube, patterns, active = 10, 8, torch.arange(CUBES)

    def strengths(self, directions: Tensor) -> Tensor:
        out = torch.zeros(CUBES, 9, len(directions))
        out[0, 3, 0], out[1, 3], out[1, 4], out[2:, 0] = 2, 0.25, 0.75, 1
        return out

    def batch(self, scenes: object, rng: np.random.Generator) -> Tensor:
        del scenes
        return torch.from_numpy(rng.standard_normal((BATCH, CUBES, self.patterns), np.float32))


class FakeDecoder:
    """Says of every feature the same number, more or less."""

    scale = torch.full((67,), SPREAD)

    def __init__(self, sampler: object) -> None:
        del sampler

    def __call__(self, tokens: Tensor) -> Tensor:
        return tokens.sum((1, 2))[:, None] * (torch.arange(67.0) + 1)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Placing:
    torch.manual_seed(0)
    monkeypatch.setattr(localizing, "LinearDecoder", FakeDecoder)
    encoder = ViT3D(config(10, CUBES))
    encoder.patch_embed = nn.Linear(FakeSampler.patterns, encoder.config.hidden_size)
    targets = SimpleNamespace(clip=torch.zeros(4, 128))
    vectors = torch.randn(len(CONCEPTS), 128)
    return Placing(encoder, FakeSampler(), targets, vectors)  # pyright: ignore[reportArgumentType]


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


def test_a_cube_is_asked_for_what_it_sees_as_strongly_as_it_answers(model: Placing):
    estimate = torch.zeros(1, 67)
    estimate[0, 3 * 7 + 1 : 3 * 7 + 4] = torch.from_numpy(COLOUR_AXES[0]) / SPREAD  # red at place 3
    seen = model._seen(estimate)[0]
    assert seen.shape == (CUBES, 14)
    # cube 0 answers to red alone
    np.testing.assert_allclose(seen[:, COLOURS.index("red")], [2, 0.25, 0, 0, 0], atol=1e-6)
    assert seen[0, 1:].abs().max() == 0
    # cyan is as far from red as can be, and black is a third of red's way
    np.testing.assert_allclose(seen[1, COLOURS.index("cyan")], -0.25, atol=1e-6)
    np.testing.assert_allclose(seen[1, COLOURS.index("black")], 0.25 / 3, atol=1e-6)
    assert seen[:, len(COLOURS) :].abs().max() == 0, "no shape is there"


def test_strengths_are_roots_of_a_signal_s_energy():
    class Linear(Sampler):
        def __init__(self) -> None:
            self.active = torch.arange(2)
            self._linear = torch.zeros(1, 79, 2 * 4)  # one subject, two cubes of four patterns
            self._linear[0, 3 * 7 + 1, :4] = 3
            self._linear[0, 3 * 7 + 4, 4:] = 1

    found = Linear().strengths(DIRECTIONS)
    assert found.shape == (2, 9, 14)
    assert found.square().mean() == pytest.approx(1)
    assert found[:, [0, 1, 2, 4, 5, 6, 7, 8]].abs().max() == 0
    shapes = found[:, 3, len(COLOURS) :]
    # of the octahedron's six vertices the first two lie on its first axis
    assert (shapes[1, :2] > 0).all()
    assert shapes[1, 2:].abs().max() == shapes[0].abs().max() == 0
    ratio = found[0, 3, 0] / shapes[1, 0]
    assert ratio == pytest.approx(3 / np.sqrt(3), rel=1e-5), "red has a third of its energy there"


@pytest.mark.parametrize("index", [2, 9, 14, 61])
def test_relevance_in_training_is_the_localizer_s(model: Placing, index: int):
    encoder = model.encoder.eval()
    encoder.patch_embed = nn.Linear(encoder.config.token_size, 64)
    tokens = torch.randn(2, CUBES, encoder.config.token_size)
    with torch.no_grad():
        mean = encoder.features(torch.zeros(1, *tokens.shape[1:]))[0]
    hidden = encoder.features(tokens)[0]
    norm, units = encoder.blocks[-1].norm1, model._units[[index, 0]]
    told = relevance(encoder, norm(hidden[:, 1:]), hidden[:, 0], norm(mean[0, 1:]), units)
    settings = LocalizationSettings()
    assert (settings.cam, settings.layer, settings.baseline) == ("gradcam", "normed", "mean")
    for k in range(2):
        given = hidden[k : k + 1].detach().numpy()
        wanted, _ = autograd_relevance(encoder, given, units[k].numpy(), settings)
        atol = 1e-3 * np.abs(wanted).max()  # its baseline is rounded to half precision
        np.testing.assert_allclose(told[k].detach(), wanted, atol=atol)


def test_a_map_in_proportion_to_what_is_seen_is_not_misplaced(model: Placing, monkeypatch):
    seen = torch.rand(BATCH, CUBES, 14)
    asked = torch.tensor([[3, 20]] * BATCH)  # one colour; one object
    wanted = torch.einsum("bnf,qf->bqn", seen, PARTS[[3, 20]]).flatten(0, 1)
    hidden = torch.randn(BATCH, CUBES + 1, 64)
    for told, miss in ((5 * wanted, 0), (-wanted, 2)):
        monkeypatch.setattr(localizing, "relevance", lambda *_, told=told: told)
        found = model.misplaced(hidden, hidden[:1], seen, asked)
        assert float(found) == pytest.approx(miss, abs=1e-5)


def test_concepts_to_locate_are_true_of_their_scenes():
    scenes = draw_scenes(40, np.random.default_rng(3))
    asked = concepts_of(scenes, np.random.default_rng(4))
    assert asked.shape == (40, 3)
    for i, row in enumerate(asked.tolist()):
        things = scenes.named(i).things
        shape, colour, both = (CONCEPTS[k] for k in row)
        assert shape in {t.shape for t in things}
        assert colour in {t.colour for t in things}
        assert both in {f"{t.colour} {t.shape}" for t in things}


def test_every_part_of_the_loss_teaches_the_encoder(model: Placing):
    tokens = FakeSampler().batch(None, np.random.default_rng(1))
    asked = torch.arange(2 * BATCH).view(BATCH, 2)
    loss = model(tokens, torch.randn(BATCH, 128), torch.arange(3), asked)
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
