"""The paper's encoder: wiring, readouts, file format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from scanside.export.vit3d import ViT3D, ViT3DConfig


def small_config(**changes: object) -> ViT3DConfig:
    values: dict[str, object] = {
        "num_cubes": 7,
        "grid": (8, 9, 10),
        "cube": 3,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "head_hidden_size": 20,
        "clip_size": 12,
        "latent_shape": (4, 5, 6),
        "prefix_size": 16,
        "prefix_hidden_size": 18,
    }
    return ViT3DConfig.from_dict(values | changes)


def seeded(config: ViT3DConfig) -> ViT3D:
    torch.manual_seed(0)
    return ViT3D(config).eval()


def test_defaults_are_the_papers() -> None:
    config = ViT3DConfig(num_cubes=96)
    assert (config.num_hidden_layers, config.hidden_size, config.head_hidden_size) == (
        16,
        768,
        1024,
    )
    assert (config.grid, config.cube, config.token_size) == ((83, 104, 81), 14, 2744)
    assert (config.clip_size, config.latent_shape, config.prefix_size) == (768, (4, 64, 64), 4096)


@pytest.mark.parametrize("class_token", [False, True])
def test_output_shapes(class_token: bool) -> None:
    model = seeded(small_config(prefix_class_token=class_token))
    clip, latent, prefix = model(torch.randn(2, 7, 27))
    assert clip.shape == (2, 12)
    assert latent.shape == (2, 4, 5, 6)
    assert prefix.shape == (2, 7 + class_token, 16)
    assert prefix.shape[1] == model.config.prefix_length


def test_a_block_is_torchs_own_pre_norm_layer() -> None:
    """Against nn.TransformerEncoderLayer with the same weights."""
    model = seeded(small_config())
    block = model.blocks[0]
    oracle = nn.TransformerEncoderLayer(
        24, 3, 40, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    with torch.no_grad():
        packed = [
            torch.cat([getattr(getattr(block, n), kind) for n in "qkv"])
            for kind in ("weight", "bias")
        ]
        oracle.self_attn.in_proj_weight.copy_(packed[0])
        oracle.self_attn.in_proj_bias.copy_(packed[1])
        for mine, theirs in (
            (block.out, oracle.self_attn.out_proj),
            (block.fc1, oracle.linear1),
            (block.fc2, oracle.linear2),
            (block.norm1, oracle.norm1),
            (block.norm2, oracle.norm2),
        ):
            theirs.load_state_dict(mine.state_dict())
        x = torch.randn(2, 8, 24)
        torch.testing.assert_close(block(x), oracle(x), atol=1e-5, rtol=1e-5)


def test_language_taps_the_penultimate_layer_and_the_others_the_last() -> None:
    model = seeded(small_config())
    tokens = torch.randn(1, 7, 27)
    before = model(tokens)
    with torch.no_grad():
        model.blocks[-1].fc2.weight.mul_(-3)
    clip, latent, prefix = model(tokens)
    torch.testing.assert_close(prefix, before[2])
    assert not torch.allclose(clip, before[0])
    assert not torch.allclose(latent, before[1])


def test_readout_is_the_class_token() -> None:
    model = seeded(small_config())
    tokens = torch.randn(1, 7, 27)
    _, last = model.features(tokens)
    torch.testing.assert_close(model(tokens)[0], model.f_wc(model.norm(last[:, 0])))


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    model = seeded(small_config())
    model.save(tmp_path, torch.float32)
    loaded = ViT3D.load(tmp_path)
    assert loaded.config == model.config
    tokens = torch.randn(1, 7, 27)
    for a, b in zip(model(tokens), loaded(tokens), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_unknown_configuration_key_is_named() -> None:
    with pytest.raises(TypeError, match="num_cuebs"):
        ViT3DConfig.from_dict({"num_cuebs": 3})
