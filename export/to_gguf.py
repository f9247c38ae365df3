"""Any Llama-family Hugging Face directory -> one GGUF file that every llama.cpp opens.

Weights are copied tensor by tensor out of the (sharded) safetensors, so that memory holds one
tensor whatever the size of the model. llama.cpp rotates pairs of neighbouring channels, Hugging
Face the two halves of a head: query and key rows are permuted accordingly. Frequencies of Llama 3's
rope scaling are a tensor of their own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.errors import CheckpointError
from .gguf_vocab import read_vocabulary
from .shards import open_shard, stored_shape, tensor_files

Json = dict[str, Any]

_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}
_RAW_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
}
_STORED = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
"""safetensors' names."""
_ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


def to_gguf(
    folder: Path, path: Path, *, dtype: str = "f16", metadata: dict[str, str | int] | None = None
) -> Path:
    """Write a Llama checkpoint as GGUF.

    Parameters
    ----------
    folder : Path
        `config.json`, safetensors, tokenizer.
    path : Path
        The `.gguf` to write.
    dtype : {"f32", "f16", "bf16"}
        Type of the matrices; vectors are always float32.
    metadata : dict, optional
        Extra keys, written as `scanside.<key>`.

    Returns
    -------
    path : Path

    Raises
    ------
    CheckpointError
        Not a plain Llama in safetensors, an unsupported rope scaling, a tensor of unknown name, or
        a tokenizer that llama.cpp lacks.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "llama":
        raise CheckpointError(
            f"{folder} is of model_type {config.get('model_type')!r}; supported is 'llama' "
            "(Llama 2, Vicuna, Llama 3, 3.1, 3.2)"
        )
    _check_config(config)
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _write_hyperparameters(writer, config, dtype)
        for key, value in (metadata or {}).items():
            add = writer.add_string if isinstance(value, str) else writer.add_uint32
            add(f"scanside.{key}", value)  # pyright: ignore[reportArgumentType]
        read_vocabulary(folder, config["vocab_size"]).write(writer, folder)
        _write_tensors(writer, folder, config, dtype)
    finally:
        writer.close()
    return path


def source_dtype(folder: Path) -> str:
    """The GGUF type that holds a checkpoint's matrices without loss: "f16", "bf16" or "f32".

    Raises
    ------
    CheckpointError
        No matrix, or one in a type that is no plain float.
    """
    found: set[str] = set()
    for file, name in tensor_files(folder):
        with open_shard(file) as shard:
            part = shard.get_slice(name)
            if len(part.get_shape()) > 1:
                found.add(part.get_dtype())
    unknown = sorted(found - _STORED.keys())
    if unknown:
        raise CheckpointError(
            f"{folder} holds matrices in {unknown[0]}; supported are {', '.join(_STORED)}: "
            "export the model as it was before it was quantised"
        )
    if not found:
        raise CheckpointError(f"{folder} holds no matrix")
    return _STORED[found.pop()] if len(found) == 1 else "f32"


def _write_hyperparameters(writer: gguf.GGUFWriter, config: Json, dtype: str) -> None:
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(head_size)
    writer.add_vocab_size(config["vocab_size"])
    kind = _rope_kind(config)
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])


def _check_config(config: Json) -> None:
    """Refuse what would be run in another way than it was trained, without anybody noticing."""
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method")
        raise CheckpointError(
            f"llm/config.json says that the weights are quantised ({method}); export the model as "
            "it was before, in float32, float16 or bfloat16"
        )
    if "rope_parameters" in config and "rope_theta" not in config:
        raise CheckpointError(
            "llm/config.json has 'rope_parameters', as transformers 5 writes them, and no "
            "'rope_theta'; write its values as rope_theta and rope_scaling, as transformers 4 did"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(
            f"llm/config.json has the activation {config['hidden_act']!r}; a Llama has 'silu'"
        )


def _rope_kind(config: Json) -> str:
    scaling: Json = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise CheckpointError(
            f"llm/config.json has rope scaling {kind!r}; supported are none, linear and llama3"
        )
    return kind


def rope_factors(config: Json) -> NDArray[np.float32] | None:
    """By what each rotation frequency is divided under Llama 3's rope scaling; None without it.

    Returns
    -------
    factors : (head_dim / 2,) float32
        1 for short wavelengths, `factor` for long ones, a smooth passage between.
    """
    if _rope_kind(config) != "llama3":
        return None
    scaling = config["rope_scaling"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    base = config.get("rope_theta", 10000.0)
    frequency = 1.0 / base ** (np.arange(0, size, 2, dtype=np.float64) / size)
    wavelength = 2 * math.pi / frequency
    context = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((context / wavelength - low) / (high - low), 0, 1)
    factors = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return factors.astype(np.float32)


def _write_tensors(writer: gguf.GGUFWriter, folder: Path, config: Json, dtype: str) -> None:
    """Two passes over the shards: GGUF wants every shape before the first byte of data."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    plan: list[tuple[Path, str]] = []
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    tied = config.get("tie_word_embeddings", False)
    for file, name in tensor_files(folder):
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise CheckpointError(f"llm holds the tensor '{name}', which is not part of a Llama")
        shape = stored_shape(file, name)
        kind = "f32" if len(shape) == 1 else dtype
        nbytes = math.prod(shape) * _ITEM_BYTES[kind]
        writer.add_tensor_info(target, shape, np.dtype(np.float32), nbytes, _RAW_TYPES[kind])
        plan.append((file, name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for file, name in plan:
        with open_shard(file) as shard:
            tensor = permute(name, shard.get_tensor(name), config)
        writer.write_tensor_data(_bytes_of(tensor, "f32" if tensor.ndim == 1 else dtype))


def permute(name: str, tensor: Tensor, config: Json) -> Tensor:
    """Bring query and key rows from half-split into interleaved rotary order; others pass
    through."""
    heads = config["num_attention_heads"]
    if ".q_proj." in name:
        count = heads
    elif ".k_proj." in name:
        count = config.get("num_key_value_heads") or heads
    else:
        return tensor
    rows = tensor.shape[0]
    split = tensor.reshape(count, 2, rows // count // 2, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def _bytes_of(tensor: Tensor, kind: str) -> NDArray[Any]:
    if kind == "bf16":
        return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    wanted = torch.float32 if kind == "f32" else torch.float16
    cast = tensor.to(wanted)
    if not bool(torch.isfinite(cast).all()):
        raise CheckpointError(f"a weight of llm is not finite in {kind}; export with bf16 or f32")
    return cast.contiguous().numpy()
