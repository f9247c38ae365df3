"""Stage `language`: the projector f_t and a small Llama, trained on conversations about scenes
that only the brain has seen.

Every training text is a whole conversation in the paper's template, `<human>:[image] [instruction]
<bot>:[answer]`: the prefix is computed once and several questions are answered, so most of the
work goes into answers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..tokenizer_training import train_llama_tokenizer
from ..vit3d import ViT3D
from .encoder import LANGUAGE_WIDTH, on_patterns
from .sampler import Sampler
from .scenes import Scenes, draw_scenes
from .texts import TEMPLATE, Turn, conversation, corpus
from .training import Recipe, train

RECIPE = Recipe(steps=3000, batch=20, learning_rate=1.5e-3, warmup=200, muon_rate=5e-3)
TURNS = 6
"""Most questions of a training conversation."""
CONTEXT = 512
TEXT_LENGTH = 128
"""Most text tokens of a training conversation; what is longer is cut after a turn."""
IGNORED = -100


def build(vocabulary: int, bos: int, eos: int) -> LlamaForCausalLM:
    """Four layers of width 256; k-quants need widths that are multiples of 256."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=LANGUAGE_WIDTH,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            # The usual 0.02 is made for widths of thousands; layers start near unit gain.
            initializer_range=0.05,
            bos_token_id=bos,
            eos_token_id=eos,
        )
    )


class Dialogue:
    """Conversations as token ids with the answers marked, each segment tokenised by itself as the
    runtime does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.before = [tokenizer.bos_token_id, *self.ids(TEMPLATE["before_prefix"])]

    def ids(self, text: str) -> list[int]:
        """Token ids of a segment, without an automatic start token."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def encode(self, turns: list[Turn], longest: int) -> tuple[list[int], list[int]]:
        """Token ids after the prefix, and the same with `IGNORED` wherever no loss is taken; turns
        that would make it longer than `longest` are left out.
        """
        ids: list[int] = []
        labels: list[int] = []
        for i, turn in enumerate(turns):
            template = TEMPLATE["next_turn" if i else "first_turn"]
            asked = self.ids(template.format(instruction=turn.question))
            answer = [
                *self.ids(TEMPLATE["answer"].format(answer=turn.answer)),
                self._tokenizer.eos_token_id,
            ]
            if len(ids) + len(asked) + len(answer) > longest:
                break
            ids += asked + answer
            labels += [IGNORED] * len(asked) + answer
        return ids, labels


class Speaker(nn.Module):
    """f_t and the Llama behind a frozen encoder."""

    def __init__(self, encoder: ViT3D, llama: LlamaForCausalLM, before: list[int]) -> None:
        super().__init__()
        self.f_t, self.llama = encoder.f_t, llama
        # Held in a tuple so that the frozen encoder is no part of this module's state.
        self._encoder = (encoder,)
        self._before = before

    def forward(self, tokens: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the answers.

        Parameters
        ----------
        tokens : (B, N, 128) float
            Pattern coefficients of brain tokens.
        ids, labels : (B, T) int64
            What follows the prefix.
        """
        encoder = self._encoder[0]
        with torch.no_grad():
            hidden, _ = encoder.features(tokens)
        prefix = self.f_t(hidden[:, 0 if encoder.config.prefix_class_token else 1 :])
        embed = self.llama.get_input_embeddings()
        before = embed(torch.tensor(self._before)).expand(len(tokens), -1, -1)
        states = self.llama.model(
            inputs_embeds=torch.cat([before, prefix, embed(ids)], 1)
        ).last_hidden_state
        # The state at a token predicts the next one: the first answer token follows a question,
        # never the prefix.
        states, target = states[:, -ids.shape[1] : -1], labels[:, 1:]
        wanted = target != IGNORED
        return F.cross_entropy(self.llama.lm_head(states[wanted]), target[wanted])


def make_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the world is one token."""
    rng = np.random.default_rng(61)
    scenes = draw_scenes(600, rng)
    lines = [
        TEMPLATE[k].format(instruction="") for k in ("before_prefix", "first_turn", "next_turn")
    ] * 50
    return train_llama_tokenizer(
        lines + corpus(600, [scenes.named(i) for i in range(600)], 61), folder, 1024
    )


def train_language(checkpoint: Path, work: Path) -> None:
    """Train projector and Llama; write llm/ and the projector's weights into encoder/."""
    tokenizer = make_tokenizer(checkpoint / "llm")
    encoder = ViT3D.load(checkpoint / "encoder").requires_grad_(False)
    encoder.f_t.requires_grad_(True)
    torch.manual_seed(62)
    voxels, encoder.patch_embed = encoder.patch_embed, on_patterns(encoder.patch_embed)
    dialogue = Dialogue(tokenizer)
    model = Speaker(
        encoder,
        build(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id),
        dialogue.before,
    )
    sampler = Sampler(work)
    state = work / "language.safetensors"
    train(
        "language", model, lambda step: language_loss(model, dialogue, sampler, step), RECIPE, state
    )
    encoder.patch_embed = voxels
    encoder.save(checkpoint / "encoder")
    model.llama.half().save_pretrained(checkpoint / "llm")
    state.unlink(missing_ok=True)


def language_loss(model: Speaker, dialogue: Dialogue, sampler: Sampler, step: int) -> Tensor:
    """Loss of the batch that belongs to a step."""
    rng = np.random.default_rng([64, step])
    scenes = draw_scenes(RECIPE.batch, rng)
    ids, labels = _texts(dialogue, scenes, rng)
    return model(sampler.batch(scenes, rng), ids, labels)


def _texts(dialogue: Dialogue, scenes: Scenes, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    rows = [
        dialogue.encode(conversation(scenes.named(i), rng, TURNS), TEXT_LENGTH)
        for i in range(len(scenes))
    ]
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORED)
    for i, (row, label) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, : len(label)] = torch.tensor(label)
    return ids, labels
