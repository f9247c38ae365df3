"""Stage `language`: a small Llama that learns to talk about what the encoder's prefix says.

The encoder and its projector f_t stay as they are: the read-outs of their own stage taught the
prefix to hold every object (`places.py`), so that only its language is left to be learned.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ..vit3d import ViT3D
from .dialogue import Dialogue, make_tokenizer
from .encoder import LANGUAGE_WIDTH, on_patterns
from .rows import Rows, answer_loss
from .sampler import Sampler
from .scenes import draw_scenes
from .texts import INSTRUCTIONS, MAX_TOKENS, TEMPLATE
from .training import Recipe, half_precision, train

RECIPE = Recipe(steps=3000, batch=48, learning_rate=1e-3, warmup=100, muon_rate=2e-3)
CONTEXT = 512


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


def train_language(checkpoint: Path, work: Path) -> None:
    """Train the Llama; write llm/."""
    tokenizer = make_tokenizer(checkpoint / "llm")
    dialogue = Dialogue(tokenizer)
    encoder = ViT3D.load(checkpoint / "encoder").requires_grad_(False)
    encoder.patch_embed = on_patterns(encoder.patch_embed)
    torch.manual_seed(62)
    llama = build(len(tokenizer), dialogue.start, dialogue.end)
    llama.model.compile()
    sampler = Sampler(work)
    state = work / "language.safetensors"

    def loss(step: int) -> Tensor:
        return language_loss(encoder, llama, dialogue, sampler, step)

    train("language", llama, loss, RECIPE, state)
    llama.half().save_pretrained(checkpoint / "llm")
    facts = {"template": TEMPLATE, "instructions": INSTRUCTIONS, "max_tokens": MAX_TOKENS}
    (checkpoint / "llm/dialogue.json").write_text(json.dumps(facts, indent=2) + "\n")
    state.unlink(missing_ok=True)


def language_loss(
    encoder: ViT3D, llama: LlamaForCausalLM, dialogue: Dialogue, sampler: Sampler, step: int
) -> Tensor:
    """Loss of the batch that belongs to a step."""
    rng = np.random.default_rng([64, step])
    scenes = draw_scenes(RECIPE.batch, rng)
    rows = Rows(dialogue, [scenes.named(i) for i in range(len(scenes))], rng)
    tokens = sampler.batch(scenes, rng)
    with half_precision():
        with torch.no_grad():
            prefix = encoder(tokens)[2]
        return answer_loss(llama, dialogue.before, prefix, rows)
