"""A U-Net that is handed keys and values answers as it does from the states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from scanside.export.cross_attention import cross_attentions, keys_values, take_keys_values
from scanside.runtime.errors import CheckpointError


def test_prepared_keys_and_values_change_nothing(tiny_checkpoint: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(
        tiny_checkpoint / "diffusion/unet", torch_dtype=torch.float32
    ).eval()
    torch.manual_seed(0)
    states = torch.randn(2, 7, unet.config.cross_attention_dim)
    labels = torch.randn(2, unet.config.projection_class_embeddings_input_dim)
    sample, time = torch.randn(2, 4, 8, 8), torch.tensor(500)
    with torch.inference_mode():
        wanted = unet(sample, time, states, class_labels=labels).sample
        prepared = keys_values(unet, states)
        take_keys_values(unet)
        found = unet(sample, time, prepared, class_labels=labels).sample
        other = unet(sample, time, prepared.roll(1, 0), class_labels=labels).sample
    widths = [layer.to_k.out_features for layer in cross_attentions(unet)]
    assert prepared.shape == (2, 7, 2 * sum(widths))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(other, wanted, atol=1e-5)


def test_a_cross_attention_with_its_own_norm_is_refused(tiny_checkpoint: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_checkpoint / "diffusion/unet")
    layer = cross_attentions(unet)[0]
    layer.norm_cross = torch.nn.LayerNorm(layer.cross_attention_dim)
    with pytest.raises(CheckpointError, match="norms the prompt"):
        take_keys_values(unet)
