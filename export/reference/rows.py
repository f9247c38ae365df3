"""Texts behind a prefix, as the language model learns them.

Every question hangs on the prefix by itself, as the runtime's forks do, so that no answer can be
copied from an earlier one; a prefix is computed once for a dozen of them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from .dialogue import IGNORED, Dialogue
from .scenes import Scene
from .texts import conversation, pieces

TURNS = 12
"""Most questions about one trial."""
TEXT_LENGTH = 144
"""Text tokens of a row; pieces that find no room are left out."""
WHOLE_SHARE = 0.2
"""Share of rows that are one long conversation instead of separate questions."""


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
        # NumPy, since a dozen small torch operations a text would take as long as the model's step
        ids = np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORED)
        forks = np.full(shape, -1)
        position = np.zeros(shape, np.int64)
        weight = np.zeros(shape, np.float32)
        for i, scene in enumerate(scenes):
            asked = (
                [conversation(scene, rng, TURNS)]
                if rng.random() < WHOLE_SHARE
                else pieces(scene, rng, TURNS)
            )
            start = fork = 0
            for turns in asked:
                said, answered = dialogue.encode(turns, TEXT_LENGTH)
                end = start + len(said)
                if end > TEXT_LENGTH:
                    continue
                ids[i, start:end] = said
                labels[i, start:end] = answered
                forks[i, start:end] = fork
                position[i, start:end] = np.arange(len(said))
                weight[i, start:end] = _weights(np.array(answered))
                start, fork = end, fork + 1
        self.ids, self.labels = torch.from_numpy(ids), torch.from_numpy(labels)
        self.fork, self.position = torch.from_numpy(forks), torch.from_numpy(position)
        self.weight = torch.from_numpy(weight)

    def mask(self, prefix: int) -> Tensor:
        """What each of `prefix + 144` tokens sees, (B, 1, T, T) bool."""
        count = len(self.ids)
        fork = torch.cat([torch.full((count, prefix), -2), self.fork], 1)
        same = fork[:, :, None] == fork[:, None]
        same[:, :, :prefix] = True
        return same.tril()[:, None]


def _weights(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """One over the root of its answer's length for each label of a fork; 0 where none is."""
    answered = labels != IGNORED
    # Answers are numbered by the questions that stand between them.
    number = np.cumsum(np.diff(answered.astype(np.int8), prepend=0) > 0)
    length = np.bincount(number[answered], minlength=int(number.max()) + 1)
    return (answered / np.sqrt(np.maximum(length[number], 1))).astype(np.float32)


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
