"""A Llama that is larger than memory: a layer's weights are read when it runs, then dropped.

Slow (every call reads the whole checkpoint), but enough for one comparison: an 8B model in float32
would need 32 GB at once, and needs one layer here. Embeddings and head stay in the file in the type
that they have there; what is used of them is brought to float32.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .shards import open_shard, stored_shape, tensor_files

RESIDENT_BYTES = 12_000_000_000
"""Float32 weights beyond this are streamed."""


_HEAD_ROWS = 8192
"""Of the head, brought to float32 at once."""


class _Embedding(nn.Embedding):
    """Rows of any stored type as float32."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight).float()


class _Head(nn.Linear):
    """A matrix of any stored type, multiplied in float32 a few rows at a time."""

    def forward(self, input: Tensor) -> Tensor:
        parts = self.weight.split(_HEAD_ROWS)
        return torch.cat([F.linear(input, part.float()) for part in parts], dim=-1)


def float32_bytes(folder: Path) -> int:
    """What the model in a Hugging Face directory would occupy in float32."""
    shapes = (stored_shape(file, name) for file, name in tensor_files(folder))
    return 4 * sum(math.prod(shape) for shape in shapes)


def open_streamed(folder: Path) -> transformers.LlamaForCausalLM:
    """Open a Llama whose decoder layers stay on disk between calls.

    Parameters
    ----------
    folder : Path
        A Hugging Face directory with safetensors.

    Returns
    -------
    model : LlamaForCausalLM
        Computes in float32; use it under `torch.inference_mode`.
    """
    config: Any = transformers.LlamaConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model: Any = transformers.LlamaForCausalLM(config)
    # its table is a buffer, which the meta device has left empty
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    where = {name: file for file, name in tensor_files(folder)}
    for i, layer in enumerate(model.model.layers):
        _stream(layer, f"model.layers.{i}.", where)
    _load(model.model.norm, "model.norm.", where)
    with torch.device("meta"):
        embeddings = _Embedding(config.vocab_size, config.hidden_size)
        head = _Head(config.hidden_size, config.vocab_size, bias=False)
    _load(embeddings, "model.embed_tokens.", where, cast=False)
    model.model.embed_tokens, model.lm_head = embeddings, head
    if config.tie_word_embeddings:
        head.weight = embeddings.weight
    else:
        _load(head, "lm_head.", where, cast=False)
    return model.eval()


def _stream(layer: nn.Module, prefix: str, where: dict[str, Path]) -> None:
    layer.register_forward_pre_hook(lambda module, _: _load(module, prefix, where))
    layer.register_forward_hook(lambda module, _, __: _drop(module))


def _load(module: nn.Module, prefix: str, where: dict[str, Path], *, cast: bool = True) -> None:
    weights: dict[str, Tensor] = {}
    for name, _ in module.named_parameters():
        with open_shard(where[prefix + name]) as shard:
            stored: Tensor = shard.get_tensor(prefix + name)
            weights[name] = stored.float() if cast else stored
    module.load_state_dict(weights, assign=True)


def _drop(module: nn.Module) -> None:
    module.to("meta")
