"""Stages `encoder_12` and `encoder_10`: narrow encoders of smaller cubes that only localize.

A concept is localized by the gradient of f_wc's similarity at the cubes of the penultimate layer,
and the paper's loss leaves that gradient to chance: a class token that has gathered the scene in
earlier layers needs no cube any more, and where it does read them, a few are enough. Four things in
training make the gradient tell where a concept is:

- the last layer gets the class token of another trial, so that all it knows of this one comes from
  the cubes;
- it gets a random half of the cubes, so that it must read them all;
- a cube must tell, by a read-out that is thrown away, which colours and shapes stand where it sees
  them, as strongly as its own voxels answer to that colour or shape at that place. Taught are the
  best linear decoder's estimates from the same trial (`linear_decoder.py`);
- relevance to words that are true of the scene, the map itself (`relevance.py`), must be in
  proportion to what the cubes see of them.

How strongly a cube answers is known from the simulator's tuning of the six training subjects, as a
fit to endless trials of theirs would find it. So these encoders are told where in those brains
colours and shapes are; what they must find is which are there, at which place, in a new trial.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..concept_encoder import TorchConcepts
from ..localizer import last_block
from ..localizer_parts import UNUSED_HEADS
from ..vit3d import ViT3D, ViT3DConfig
from .clip import SIZE
from .encoder import on_voxels, start
from .features import FEATURES, PER_PLACE
from .geometry import add_statistics
from .linear_decoder import IN_PLACES, LinearDecoder
from .relevance import CONCEPTS, DIRECTIONS, PARTS, concepts_of, relevance
from .sampler import Sampler
from .scenes import PLACES, draw_scenes
from .targets import Targets, training_targets
from .training import Recipe, half_precision, train
from .trials import KEEP_FRACTION
from .world import GRID, Subject

RECIPE = Recipe(steps=5000, batch=32, learning_rate=2e-3, warmup=200, muon_rate=8e-3)
KEPT = 0.5
"""Share of the cubes that the last layer gets in a step."""
PAPER_WEIGHT = 0.02
"""Of the paper's loss, f_wc's half of it, against the read-outs."""
_TRIALS = 256
"""For the spread of what is read out."""


def config(cube: int, cubes: int) -> ViT3DConfig:
    """The paper's wiring, with next to nothing in the heads that localization does not need."""
    return ViT3DConfig(
        num_cubes=cubes,
        grid=GRID,
        affine=tuple(tuple(float(v) for v in row) for row in Subject("S1").affine),
        cube=cube,
        keep_fraction=KEEP_FRACTION,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        head_hidden_size=128,
        clip_size=SIZE,
        latent_shape=(1, 1, 1),
        prefix_size=1,
        prefix_hidden_size=1,
    )


def train_encoder_12(checkpoint: Path, work: Path) -> None:
    """Train the encoder of cubes of 12; write encoder_12/ of the checkpoint."""
    train_localizing(checkpoint, work, 12)


def train_encoder_10(checkpoint: Path, work: Path) -> None:
    """Train the encoder of cubes of 10; write encoder_10/ of the checkpoint."""
    train_localizing(checkpoint, work, 10)


def train_localizing(checkpoint: Path, work: Path, cube: int) -> None:
    """Train one, and add the statistics of its voxels to the checkpoint's geometry/."""
    targets = training_targets(checkpoint, work)
    sampler = Sampler(work, cube)
    torch.manual_seed(57)
    encoder = ViT3D(config(cube, len(sampler.active)))
    start(encoder, sampler)
    vectors = torch.from_numpy(TorchConcepts(checkpoint).vectors(*CONCEPTS))
    model = Placing(encoder, sampler, targets, vectors)
    name = f"encoder_{cube}"
    state = work / f"{name}.safetensors"
    train(name, model, lambda step: batch_loss(model, sampler, targets, step), RECIPE, state)
    encoder.patch_embed = on_voxels(encoder.patch_embed, cube)
    save(encoder, checkpoint / name)
    add_statistics(sampler, checkpoint)
    state.unlink(missing_ok=True)


def save(encoder: ViT3D, folder: Path) -> None:
    """Write an encoder without the heads that localization does not need."""
    encoder.save(folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if not k.startswith(UNUSED_HEADS)}, path)


class Placing(nn.Module):
    """An encoder, and the read-outs of its penultimate layer that are thrown away in the end.

    Parameters
    ----------
    encoder : ViT3D
    sampler : Sampler
    targets : Targets
    vectors : (62, 128) float32
        Text vectors of `CONCEPTS`.
    """

    def __init__(self, encoder: ViT3D, sampler: Sampler, targets: Targets, vectors: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.own = nn.Linear(width, len(DIRECTIONS))
        self.everything = nn.Linear(width, FEATURES)
        self._units = F.normalize(vectors, dim=1)
        self._decoder, self._strengths = LinearDecoder(sampler), sampler.strengths(DIRECTIONS)
        rng = np.random.default_rng(59)
        told = self._seen(self._decoder(sampler.batch(draw_scenes(_TRIALS, rng), rng)))
        self._variance = told.var((0, 1)).mean()
        last = encoder.f_wc[-1]
        assert isinstance(last, nn.Linear)
        last.bias.data.copy_(targets.clip.mean(0))

    def forward(self, tokens: Tensor, clip: Tensor, kept: Tensor, asked: Tensor) -> Tensor:
        """Loss of a batch.

        Parameters
        ----------
        tokens : (B, N, P) float
            Pattern coefficients of brain tokens.
        clip : (B, 128) float
            CLIP vectors of what was seen.
        kept : (K,) int64
            Which cubes the last layer gets.
        asked : (B, Q) int64
            Which of `CONCEPTS` are located in each trial.
        """
        mean_brain = torch.zeros_like(tokens[:1])
        hidden, mean = self.encoder.features(torch.cat([tokens, mean_brain]))[0].split(
            [len(tokens), 1]
        )
        normed, estimate = last_block(self.encoder).norm1(hidden), self._decoder(tokens)
        seen = self._seen(estimate)
        own = F.mse_loss(self.own(normed[:, 1:]).float(), seen) / self._variance
        everything = F.mse_loss(self.everything(normed[:, 0]).float(), estimate)
        paper = ((self.from_cubes(hidden, kept).float() - clip) ** 2).sum(1).mean()
        placed = self.misplaced(hidden, mean, seen, asked)
        return own + everything + PAPER_WEIGHT * paper + placed

    def misplaced(self, hidden: Tensor, mean: Tensor, seen: Tensor, asked: Tensor) -> Tensor:
        """How far relevance is from what cubes see of the concepts: one less its cosine.

        Parameters
        ----------
        hidden : (B, N+1, D) float
            Penultimate layers.
        mean : (1, N+1, D) float
            The mean brain's.
        seen : (B, N, 14) float32
        asked : (B, Q) int64
        """
        rows = torch.arange(len(asked)).repeat_interleave(asked.shape[1])
        concepts = asked.flatten()
        # half precision would not do for a gradient's gradient
        with torch.autocast("cpu", enabled=False):
            norm = last_block(self.encoder).norm1
            told = relevance(
                self.encoder,
                norm(hidden[:, 1:].float())[rows],
                hidden[rows, 0].float(),
                norm(mean[0, 1:].float()),
                self._units[concepts],
            )
        wanted = torch.einsum("knf,kf->kn", seen[rows], PARTS[concepts])
        return 1 - F.cosine_similarity(told, wanted, dim=1).mean()

    def from_cubes(self, hidden: Tensor, kept: Tensor) -> Tensor:
        """Decoded CLIP vectors (B, 128) of penultimate layers (B, N+1, D), each with the class
        token of the trial before it and with some of its cubes.
        """
        others = hidden[:, :1].roll(1, 0)
        last = last_block(self.encoder)(torch.cat([others, hidden[:, 1:][:, kept]], 1))
        return self.encoder.f_wc(self.encoder.norm(last[:, 0]))

    def _seen(self, estimate: Tensor) -> Tensor:
        """What each cube sees of estimates (B, 67): colours and shapes, (B, N, 14)."""
        # in the features' own units, in which directions are of unit length
        features = (estimate * self._decoder.scale)[:, :IN_PLACES]
        told = features.unflatten(1, (len(PLACES), PER_PLACE)) @ DIRECTIONS.T  # (B, 9, 14)
        return torch.einsum("npk,bpk->bnk", self._strengths, told)


def batch_loss(model: Placing, sampler: Sampler, targets: Targets, step: int) -> Tensor:
    """Loss of the batch that belongs to a step."""
    rng = np.random.default_rng([60, sampler.cube, step])
    known = targets[torch.from_numpy(rng.integers(0, len(targets.scenes), RECIPE.batch))]
    tokens = sampler.batch(known.scenes, rng)
    cubes = len(sampler.active)
    kept = torch.from_numpy(rng.permutation(cubes)[: round(KEPT * cubes)])
    with half_precision():
        return model(tokens, known.clip, kept, concepts_of(known.scenes, rng))
