"""Stage `together`: encoder, projector and Llama trained further as one, as section 4.1 of the
paper has it for its second stage.

The encoder learns what the answers need, while its own losses (`encoder.py`) go on.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ..vit3d import ViT3D
from .dialogue import Dialogue
from .encoder import Reading, on_patterns, on_voxels
from .rows import Rows, answer_loss
from .sampler import Sampler
from .scenes import Scenes, draw_scenes
from .targets import Targets, training_targets
from .texts import INSTRUCTIONS, MAX_TOKENS, TEMPLATE
from .training import Recipe, half_precision, train

RECIPE = Recipe(steps=2000, batch=48, learning_rate=4e-4, warmup=50, muon_rate=1e-3)
ALIGNED_SHARE = 0.5
"""Share of rows that the paper's loss is taken on: its targets are worked out for a set of scenes,
while questions may be about any.
"""
ENCODER_WEIGHT = 0.3
"""Of the encoder's own losses against the cross-entropy of a token."""


class Whole(nn.Module):
    """Encoder and Llama with the losses of both.

    Parameters
    ----------
    reading : Reading
        The encoder and its read-outs.
    llama : LlamaForCausalLM
    before : list of int
        Token ids in front of the prefix.
    """

    def __init__(self, reading: Reading, llama: LlamaForCausalLM, before: list[int]) -> None:
        super().__init__()
        self.reading, self.llama = reading, llama
        self._before = before

    def forward(self, tokens: Tensor, rows: Rows, scenes: Scenes, targets: Targets) -> Tensor:
        """Cross-entropy of the answers plus the encoder's own losses.

        Parameters
        ----------
        tokens : (B, N, 128) float
            Pattern coefficients of brain tokens.
        rows : Rows
            Texts about all B trials.
        scenes : Scenes
            What was seen in them.
        targets : Targets
            Of the first of them.
        """
        own, prefix = self.reading.loss(tokens, scenes, targets)
        return answer_loss(self.llama, self._before, prefix, rows) + ENCODER_WEIGHT * own


def train_together(checkpoint: Path, work: Path) -> None:
    """Train on what stages `encoder` and `language` wrote, and complete llm/."""
    targets = training_targets(checkpoint, work)
    sampler = Sampler(work)
    encoder = ViT3D.load(checkpoint / "encoder")
    encoder.patch_embed = on_patterns(encoder.patch_embed)
    llama = LlamaForCausalLM.from_pretrained(checkpoint / "llm", dtype=torch.float32)
    dialogue = Dialogue(PreTrainedTokenizerFast.from_pretrained(checkpoint / "llm"))
    model = Whole(Reading(encoder.requires_grad_(True), sampler), llama, dialogue.before)
    # Small layers spend most of their time between matrix products; compiled, those are one pass.
    encoder.compile()
    llama.model.compile()
    state = work / "together.safetensors"

    def loss(step: int) -> Tensor:
        return together_loss(model, dialogue, sampler, targets, step)

    train("together", model, loss, RECIPE, state)
    encoder.patch_embed = on_voxels(encoder.patch_embed)
    encoder.save(checkpoint / "encoder")
    llama.half().save_pretrained(checkpoint / "llm")
    facts = {"template": TEMPLATE, "instructions": INSTRUCTIONS, "max_tokens": MAX_TOKENS}
    (checkpoint / "llm/dialogue.json").write_text(json.dumps(facts, indent=2) + "\n")
    state.unlink(missing_ok=True)


def together_loss(
    model: Whole, dialogue: Dialogue, sampler: Sampler, targets: Targets, step: int
) -> Tensor:
    """Loss of the batch that belongs to a step."""
    rng = np.random.default_rng([65, step])
    aligned = round(ALIGNED_SHARE * RECIPE.batch)
    known = targets[torch.from_numpy(rng.integers(0, len(targets.scenes), aligned))]
    fresh = draw_scenes(RECIPE.batch - aligned, rng)
    scenes = Scenes(
        np.concatenate([known.scenes.things, fresh.things]),
        np.concatenate([known.scenes.background, fresh.background]),
    )
    rows = Rows(dialogue, [scenes.named(i) for i in range(len(scenes))], rng)
    tokens = sampler.batch(scenes, rng)
    with half_precision():
        return model(tokens, rows, scenes, known)
