"""Stage `together`: encoder, projector and Llama trained further as one, as section 4.1 of the
paper has it for its second stage.

Two things make a step teach more than one of stage `language`. Every question hangs on the prefix
by itself, as the runtime's forks do, so that no answer can be copied from an earlier one. And the
encoder learns what the answers need, while its own losses (`encoder.py`) go on.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ..vit3d import ViT3D
from .encoder import Reading, on_patterns, on_voxels
from .language import IGNORED, Dialogue
from .sampler import Sampler
from .scenes import Scene, Scenes, draw_scenes
from .targets import Targets, training_targets
from .texts import INSTRUCTIONS, MAX_TOKENS, TEMPLATE, conversation, pieces
from .training import Recipe, half_precision, train

RECIPE = Recipe(steps=2000, batch=48, learning_rate=4e-4, warmup=50, muon_rate=1e-3)
TURNS = 12
"""Most questions about one trial."""
TEXT_LENGTH = 144
"""Text tokens of a row; pieces that find no room are left out."""
WHOLE_SHARE = 0.2
"""Share of rows that are one long conversation instead of separate questions."""
ALIGNED_SHARE = 0.5
"""Share of rows that the paper's loss is taken on: its targets are worked out for a set of scenes,
while questions may be about any.
"""
ENCODER_WEIGHT = 0.3
"""Of the encoder's own losses against the cross-entropy of a token."""


class Rows:
    """A batch of texts behind their prefixes.

    Attributes
    ----------
    ids, labels : (B, 144) int64
        Tokens, and the same with `IGNORED` where no loss is taken.
    fork : (B, 144) int64
        Which tokens see one another; -1 in the padding.
    position : (B, 144) int64
        Counted from the prefix's end.
    weight : (B, 144) float32
        Of each label. A longer answer weighs more, but by the root of its length: the one word that
        answers a question about two objects is as hard as a sentence, and would else hardly count.
    """

    def __init__(self, dialogue: Dialogue, scenes: list[Scene], rng: np.random.Generator) -> None:
        shape = len(scenes), TEXT_LENGTH
        self.ids = torch.zeros(shape, dtype=torch.int64)
        self.labels = torch.full(shape, IGNORED)
        self.fork = torch.full(shape, -1)
        self.position = torch.zeros(shape, dtype=torch.int64)
        self.weight = torch.zeros(shape)
        for i, scene in enumerate(scenes):
            asked = (
                [conversation(scene, rng, TURNS)]
                if rng.random() < WHOLE_SHARE
                else pieces(scene, rng, TURNS)
            )
            start = fork = 0
            for turns in asked:
                ids, labels = dialogue.encode(turns, TEXT_LENGTH)
                end = start + len(ids)
                if end > TEXT_LENGTH:
                    continue
                self.ids[i, start:end] = torch.tensor(ids)
                self.labels[i, start:end] = torch.tensor(labels)
                self.fork[i, start:end] = fork
                self.position[i, start:end] = torch.arange(len(ids))
                self.weight[i, start:end] = _weights(labels)
                start, fork = end, fork + 1

    def mask(self, prefix: int) -> Tensor:
        """What each of `prefix + 144` tokens sees, (B, 1, T, T) bool."""
        count = len(self.ids)
        fork = torch.cat([torch.full((count, prefix), -2), self.fork], 1)
        same = fork[:, :, None] == fork[:, None]
        same[:, :, :prefix] = True
        return same.tril()[:, None]


def _weights(labels: list[int]) -> Tensor:
    """One over the root of its answer's length for each label of a fork; 0 where none is."""
    answered = torch.tensor(labels) != IGNORED
    # Answers are numbered by the questions that stand between them.
    number = (answered.int().diff(prepend=torch.tensor([0])) > 0).cumsum(0)
    length = torch.bincount(number[answered], minlength=int(number.max()) + 1)
    return answered / length[number].clamp_min(1).sqrt()


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


def answer_loss(llama: LlamaForCausalLM, before: list[int], prefix: Tensor, rows: Rows) -> Tensor:
    """Weighted mean cross-entropy of the answers' tokens.

    Parameters
    ----------
    before : list of int
        Token ids in front of the prefix.
    prefix : (B, M, 256) float
    rows : Rows
        What is asked and answered behind it.
    """
    embed = llama.get_input_embeddings()
    head = embed(torch.tensor(before)).expand(len(prefix), -1, -1)
    lead = len(before) + prefix.shape[1]
    states = llama.model(
        inputs_embeds=torch.cat([head, prefix, embed(rows.ids)], 1),
        attention_mask=rows.mask(lead),
        position_ids=torch.cat(
            [torch.arange(lead).expand(len(prefix), -1), lead + rows.position], 1
        ),
        use_cache=False,
    ).last_hidden_state
    # The state at a token predicts the next one; a fork's first tokens are its question.
    states, target = states[:, lead:-1], rows.labels[:, 1:]
    wanted = target != IGNORED
    each = F.cross_entropy(llama.lm_head(states[wanted]).float(), target[wanted], reduction="none")
    weight = rows.weight[:, 1:][wanted]
    return (weight * each).sum() / weight.sum()


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
