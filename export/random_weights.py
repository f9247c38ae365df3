"""Random weights for any torch module, written tensor by tensor without ever building the module.

The module lives on the meta device and only gives names and shapes, so that a checkpoint of any
size needs the memory of one shard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SHARD_BYTES = 2 * 1024**3


def random_tensors(
    module: nn.Module, seed: int, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Draw every parameter and buffer of a module on the meta device.

    Matrices and kernels get torch's own default spread, 1/sqrt(3 fan_in), so that activations keep
    a sane size at any depth; norms are the identity, biases zero.

    Parameters
    ----------
    module : nn.Module
        On the meta device.
    seed : int
        The same seed gives the same weights.
    dtype : torch.dtype
        Type of the result.

    Yields
    ------
    name, tensor : str, Tensor
        Tied copies are left out, as the libraries' own writers do.
    """
    generator = torch.Generator().manual_seed(seed)
    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    if not getattr(getattr(module, "config", None), "tie_word_embeddings", True):
        tied = set()
    for name, like in module.state_dict().items():
        if name not in tied:
            yield name, _draw(name, like, generator).to(dtype)


def _draw(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if like.ndim <= 1:
        return torch.zeros(like.shape) if name.endswith("bias") else torch.ones(like.shape)
    std = 1 / math.sqrt(3 * math.prod(like.shape[1:]))
    return torch.randn(like.shape, generator=generator) * std


def save_sharded(
    tensors: Iterator[tuple[str, Tensor]], folder: Path, stem: str, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `stem.safetensors`, or numbered shards and their index, named as the libraries do.

    Parameters
    ----------
    tensors : iterator of (str, Tensor)
        Consumed once; at most one shard is held.
    folder : Path
        Must exist.
    stem : str
        "model" or "diffusion_pytorch_model".
    shard_bytes : int
        Most bytes of a shard.
    """
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        save_file(held, folder / f"{stem}-{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / f"{stem}-0.part").rename(folder / f"{stem}.safetensors")
        return
    where: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{stem}-{i}.part").rename(folder / file)
        where.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))
