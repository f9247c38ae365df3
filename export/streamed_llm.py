"""A Llama that is larger than memory: a layer's weights are read when it runs, then dropped.

Slow (every call reads the whole checkpoint), but enough for one comparison: an 8B model in float32
would need 32 GB at once, and needs the largest layer and the two embedding matrices here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

RESIDENT_BYTES = 12_000_000_000
"""Float32 weights beyond this are streamed."""


def float32_bytes(folder: Path) -> int:
    """What the model in a Hugging Face directory would occupy in float32."""
    return 4 * sum(_size(file, name) for name, file in _locations(folder).items())


def _size(file: Path, name: str) -> int:
    with safe_open(file, "pt") as shard:
        shape: list[int] = shard.get_slice(name).get_shape()
    return int(torch.Size(shape).numel())


def _locations(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in named.items()}
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as shard:
        return dict.fromkeys(shard.keys(), file)


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
    where = _locations(folder)
    for i, layer in enumerate(model.model.layers):
        _stream(layer, f"model.layers.{i}.", where)
    _load(model.model.embed_tokens, "model.embed_tokens.", where)
    _load(model.model.norm, "model.norm.", where)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    else:
        _load(model.lm_head, "lm_head.", where)
    return model.eval()


def _stream(layer: nn.Module, prefix: str, where: dict[str, Path]) -> None:
    layer.register_forward_pre_hook(lambda module, _: _load(module, prefix, where))
    layer.register_forward_hook(lambda module, _, __: _drop(module))


def _load(module: nn.Module, prefix: str, where: dict[str, Path]) -> None:
    weights: dict[str, torch.Tensor] = {}
    for name, _ in module.named_parameters():
        with safe_open(where[prefix + name], "pt") as shard:
            weights[name] = shard.get_tensor(prefix + name).float()
    module.load_state_dict(weights, assign=True)


def _drop(module: nn.Module) -> None:
    module.to("meta")
