"""Stage `encoder`: ViT3D, trained on simulated trials of the seen subjects by the paper's loss.

L = || f_wc(h) - E_c(x) ||^2 + alpha || f_wv(h) - E_v(x) ||^2 with alpha = 1/64 (Eq. 2), on mixtures
of trials of one scene; read-outs of what the prefix says (`places.py`); and what the best linear
decoder estimates from the same trial (`linear_decoder.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..vit3d import ViT3D, ViT3DConfig
from .clip import SIZE
from .geometry import write_geometry
from .linear_decoder import Imitation, LinearDecoder
from .places import OrderReader, PlaceReader
from .sampler import PATTERNS, Sampler, smooth_patterns
from .scenes import Scenes, draw_scenes
from .targets import Targets, training_targets
from .training import Recipe, half_precision, train
from .trials import CUBE, KEEP_FRACTION
from .vae import LATENT_SHAPE
from .world import GRID, Subject

ALPHA = 1 / 64
RECIPE = Recipe(steps=5000, batch=64, learning_rate=1.5e-3, warmup=200, muon_rate=6e-3)
ALIGNED_SHARE = 0.5
"""Share of trials that the paper's loss is taken on: its targets are worked out for a set of
scenes, while read-outs may be about any.
"""
PAPER_WEIGHT = 0.05
"""Of the paper's loss against what is read at places."""
ORDER_WEIGHT = 0.2
IMITATION_WEIGHT = 4.0
"""Of the other read-outs. Decisions rest on good estimates, which imitation teaches faster."""
LANGUAGE_WIDTH = 256
POSITION_STD = 1.0
"""Start of the position embedding, as strong as a token: what a cube says depends on where it
lies, and the layers must tell places apart
from the first step."""


def config(cubes: int) -> ViT3DConfig:
    """The paper's geometry and wiring at small width."""
    return ViT3DConfig(
        num_cubes=cubes,
        grid=GRID,
        affine=tuple(tuple(float(v) for v in row) for row in Subject("S1").affine),
        cube=CUBE,
        keep_fraction=KEEP_FRACTION,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        head_hidden_size=512,
        clip_size=SIZE,
        latent_shape=LATENT_SHAPE,
        prefix_size=LANGUAGE_WIDTH,
        prefix_hidden_size=LANGUAGE_WIDTH,
        prefix_class_token=True,
    )


def train_encoder(checkpoint: Path, work: Path) -> None:
    """Train the encoder; write encoder/ and geometry/ of the checkpoint."""
    targets = training_targets(checkpoint, work)
    sampler = Sampler(work)
    torch.manual_seed(51)
    encoder = ViT3D(config(len(sampler.active)))
    start(encoder, sampler)
    model = Reading(encoder, sampler)
    encoder.compile()
    state = work / "encoder.safetensors"
    train("encoder", model, lambda step: batch_loss(model, sampler, targets, step), RECIPE, state)
    to_unit_size(encoder, sampler)
    encoder.patch_embed = on_voxels(encoder.patch_embed)
    encoder.save(checkpoint / "encoder")
    write_geometry(sampler, checkpoint)
    state.unlink(missing_ok=True)


@torch.no_grad()
def start(model: ViT3D, sampler: Sampler) -> None:
    """Weights to start from, and a patch embedding on the sampler's coefficients.

    Coefficients are brought to one scale, else a cube's mean, mostly noise, drowns its patterns.
    Places are as strong as contents, and layers have unit gain. Together they make the first
    hundreds of steps count.
    """
    rng = np.random.default_rng(54)
    scale = sampler.batch(draw_scenes(96, rng), rng).std((0, 1))
    model.patch_embed = nn.Linear(sampler.patterns, model.config.hidden_size)
    nn.init.orthogonal_(model.patch_embed.weight)
    model.patch_embed.weight /= scale
    nn.init.normal_(model.position, std=POSITION_STD)
    for block in model.blocks:
        for module in block.children():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)


@torch.no_grad()
def to_unit_size(encoder: ViT3D, sampler: Sampler) -> None:
    """Scale f_t so that the prefix has unit mean square.

    The read-outs do not mind how large it is and let it grow tenfold; beside that, what the
    language model's layers add to it would be nothing.
    """
    rng = np.random.default_rng(55)
    tokens = sampler.batch(draw_scenes(96, rng), rng)
    last = encoder.f_t[-1]
    assert isinstance(last, nn.Linear)
    size = encoder(tokens)[2].square().mean().sqrt()
    last.weight /= size
    last.bias /= size


def on_voxels(embed: nn.Linear, cube: int = CUBE) -> nn.Linear:
    """A patch embedding of pattern coefficients as one of voxels, the same map."""
    out = nn.Linear(cube**3, embed.out_features)
    with torch.no_grad():
        out.weight.copy_(embed.weight @ smooth_patterns(embed.in_features, cube))
        out.bias.copy_(embed.bias)
    return out


def on_patterns(embed: nn.Linear) -> nn.Linear:
    """The inverse of `on_voxels`, for stages that train behind the encoder on the sampler's
    coefficients.
    """
    out = nn.Linear(PATTERNS, embed.out_features)
    with torch.no_grad():
        out.weight.copy_(embed.weight @ smooth_patterns(PATTERNS).T)
        out.bias.copy_(embed.bias)
    return out


class Reading(nn.Module):
    """The encoder, and the read-outs of its prefix that are thrown away in the end."""

    def __init__(self, encoder: ViT3D, sampler: Sampler) -> None:
        super().__init__()
        self.encoder = encoder
        places, width = sampler.places(), encoder.config.prefix_size
        self.at_places = PlaceReader(places, width)
        self.in_order = OrderReader(width)
        self.imitation = Imitation(LinearDecoder(sampler), places, width)

    def forward(self, tokens: Tensor, scenes: Scenes, targets: Targets) -> Tensor:
        """Loss of a batch.

        Parameters
        ----------
        tokens : (B, N, 128) float
            Pattern coefficients of brain tokens.
        scenes : Scenes
            What was seen in them.
        targets : Targets
            Of the first of them.
        """
        clip, latent, prefix = self.encoder(tokens)
        count = len(targets.clip)
        paper = paper_loss(clip[:count], latent[:count], targets)
        read = self.at_places(prefix, scenes) + ORDER_WEIGHT * self.in_order(prefix, scenes)
        read = read + IMITATION_WEIGHT * self.imitation(tokens, prefix)
        return PAPER_WEIGHT * paper + read


def batch_loss(model: Reading, sampler: Sampler, targets: Targets, step: int) -> Tensor:
    """Loss of the batch that belongs to a step."""
    rng = np.random.default_rng([53, step])
    aligned = round(ALIGNED_SHARE * RECIPE.batch)
    known = targets[torch.from_numpy(rng.integers(0, len(targets.scenes), aligned))]
    fresh = draw_scenes(RECIPE.batch - aligned, rng)
    scenes = Scenes(
        np.concatenate([known.scenes.things, fresh.things]),
        np.concatenate([known.scenes.background, fresh.background]),
    )
    tokens = sampler.batch(scenes, rng)
    with half_precision():
        return model(tokens, scenes, known)


def paper_loss(clip: Tensor, latent: Tensor, targets: Targets) -> Tensor:
    """Eq. 2 of the paper, averaged over the batch.

    Parameters
    ----------
    clip : (B, 128) float
    latent : (B, 4, 16, 16) float
    targets : Targets
        What these two should be.
    """
    semantic = ((clip.float() - targets.clip) ** 2).sum(1)
    visual = ((latent.float() - targets.latent) ** 2).sum((1, 2, 3))
    return (semantic + ALPHA * visual).mean()
