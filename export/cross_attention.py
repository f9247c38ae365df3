"""The prompt's keys and values, taken out of the U-Net.

A prompt is the same at every denoising step, and so are the keys and values that every cross-
attention makes of it. They become the output of the prompt encoder's graph, side by side, and the
U-Net's graph only cuts out the columns that belong to each layer.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.errors import CheckpointError


def cross_attentions(unet: Any) -> list[Any]:
    """Every cross-attention of a U-Net, in the order of its modules.

    Any, since `Attention` is annotated for all that it can be: a cross-attention has projections to
    keys and values always, and takes any processor.
    """
    return [m for m in unet.modules() if isinstance(m, Attention) and m.is_cross_attention]


def projections(unet: Any) -> list[nn.Linear]:
    """Their projections to keys and to values, in turn."""
    return [p for layer in cross_attentions(unet) for p in (layer.to_k, layer.to_v)]


def keys_values(unet: Any, states: Tensor) -> Tensor:
    """Keys and values of every cross-attention, side by side: (B, L, d) -> (B, L, W)."""
    return torch.cat([project(states) for project in projections(unet)], dim=-1)


def take_keys_values(unet: Any) -> None:
    """Change a U-Net, in place, so that it is called with `keys_values` as encoder states.

    Raises
    ------
    CheckpointError
        A cross-attention does more with a prompt than project it.
    """
    first = 0
    for layer in cross_attentions(unet):
        if layer.norm_cross is not None or layer.norm_k is not None:
            raise CheckpointError(
                "diffusion/unet: a cross-attention norms the prompt or its keys, which no Stable "
                "unCLIP does; export expects plain projections"
            )
        layer.set_processor(PreparedAttention(first, layer.to_k.out_features))
        first += 2 * layer.to_k.out_features


class PreparedAttention:
    """An attention processor whose keys and values are columns of what it is given."""

    def __init__(self, first: int, width: int) -> None:
        self._key = slice(first, first + width)
        self._value = slice(first + width, first + 2 * width)

    def __call__(
        self, layer: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> Tensor:
        """(B, T, d) float, (B, L, W) float -> (B, T, d) float."""
        given = (
            layer.to_q(hidden_states),
            encoder_hidden_states[..., self._key],
            encoder_hidden_states[..., self._value],
        )
        q, k, v = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in given)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return cast(nn.ModuleList, layer.to_out)[0](out)
