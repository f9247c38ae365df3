"""Random checkpoints have the format and the wiring of trained ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from scanside.export.checkpoint import open_checkpoint
from scanside.export.cubes import active_cubes, cut_cubes, posterior_mask
from scanside.export.presets import PRESETS
from scanside.export.random_checkpoint import write_random_checkpoint
from scanside.export.random_weights import random_tensors, save_sharded
from scanside.export.vit3d import ViT3DConfig
from scanside.kernels.geometry import Geometry
from scanside.runtime.errors import InputError


def test_the_libraries_open_their_parts(tiny_checkpoint: Path) -> None:
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(
        tiny_checkpoint / "diffusion", local_files_only=True
    )
    assert pipeline.unet.config.class_embed_type == "projection"
    assert pipeline.tokenizer.model_max_length == 24
    llm = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint / "llm")
    assert isinstance(llm, transformers.LlamaForCausalLM)
    concept = transformers.CLIPTextModelWithProjection.from_pretrained(tiny_checkpoint / "concept")
    assert concept.config.projection_dim == open_checkpoint(tiny_checkpoint).encoder.clip_size


def test_tokenizers_encode_any_text_and_give_it_back(tiny_checkpoint: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint / "llm")
    text = "A red circle; Ünïcode, 漢字 🧠\n\t."
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    slow = transformers.CLIPTokenizer.from_pretrained(tiny_checkpoint / "diffusion" / "tokenizer")
    fast = transformers.CLIPTokenizerFast.from_pretrained(
        tiny_checkpoint / "diffusion" / "tokenizer"
    )
    for sample in ("a red circle", "Zebra, 12 small   STARS!"):
        assert slow(sample).input_ids == fast(sample).input_ids


def test_nothing_is_pickled(tiny_checkpoint: Path) -> None:
    suffixes = {p.suffix for p in tiny_checkpoint.rglob("*") if p.is_file()}
    assert suffixes <= {".json", ".safetensors", ".txt", ".gz", ".md"}


def test_same_seed_same_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    again = write_random_checkpoint("tiny", tmp_path)
    for part in ("llm/model", "encoder/model", "diffusion/unet/diffusion_pytorch_model"):
        file = f"{part}.safetensors"
        first, second = load_file(tiny_checkpoint / file), load_file(again / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first)


def test_shards_hold_every_tensor_once(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**PRESETS["tiny"].llm)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    save_sharded(random_tensors(model, 0, torch.bfloat16), tmp_path, "model", shard_bytes=500_000)
    config.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    _, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@pytest.mark.parametrize("name", PRESETS)
def test_widths_of_a_preset_fit_together(name: str) -> None:
    preset = PRESETS[name]
    encoder = ViT3DConfig(num_cubes=preset.cubes, **preset.encoder)
    assert preset.unet["projection_class_embeddings_input_dim"] == 2 * encoder.clip_size
    assert (
        preset.image["projection_dim"] == preset.concept_text["projection_dim"] == encoder.clip_size
    )
    assert preset.llm["hidden_size"] == encoder.prefix_size
    assert preset.unet["cross_attention_dim"] == preset.prompt_text["hidden_size"]
    assert encoder.latent_shape[1:] == (preset.unet["sample_size"],) * 2
    factor = 2 ** (len(preset.vae["block_out_channels"]) - 1)
    assert preset.vae["sample_size"] == preset.unet["sample_size"] * factor
    mask = posterior_mask(encoder.grid, encoder.cube, encoder.pad, preset.cubes)
    assert mask.shape == encoder.grid
    active = active_cubes(mask, encoder.cube, encoder.pad, encoder.keep_fraction)
    assert len(active) == preset.cubes


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="random:tiny, random:tiny-three, random:narrow"):
        write_random_checkpoint("huge", tmp_path)


@pytest.mark.parametrize("pad", ["back", "front", "both"])
def test_cubes_lie_where_the_kernel_looks_for_them(pad: str) -> None:
    grid, cube = (7, 10, 5), 3
    volume = np.arange(1, 1 + 7 * 10 * 5, dtype=np.float64).reshape(grid)
    cubes = cut_cubes(volume, cube, pad)
    geometry = Geometry(grid=grid, cube=cube, active=np.arange(len(cubes)), pad=pad)
    voxels = np.where(geometry.in_grid[..., None], geometry.voxels, 0)
    want = np.where(geometry.in_grid, volume[tuple(np.moveaxis(voxels, -1, 0))], 0)
    np.testing.assert_array_equal(cubes, want)


def test_a_cube_is_kept_from_the_stated_share_on() -> None:
    mask = np.zeros((4, 4, 8), np.uint8)
    mask[:2, :2, 0] = 1  # 4 of 64 voxels of the first cube
    assert active_cubes(mask, 4, "back", 4 / 64).tolist() == [0]
    assert active_cubes(mask, 4, "back", 5 / 64).tolist() == []
    assert active_cubes(mask, 4, "back", 0.0).tolist() == [0]


def test_the_papers_parts_have_the_sizes_of_the_released_models() -> None:
    """Parameter counts of Stable unCLIP 2.1-L, SD's VAE, Llama-3-8B and Llama-3.2-1B."""
    paper, small = PRESETS["paper"], PRESETS["paper-1b"]
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**paper.unet),
            "vae": AutoencoderKL(**paper.vae),
            "llama-3-8b": transformers.LlamaForCausalLM(transformers.LlamaConfig(**paper.llm)),
            "llama-3.2-1b": transformers.LlamaForCausalLM(transformers.LlamaConfig(**small.llm)),
        }
    millions = {n: round(sum(p.numel() for p in m.parameters()) / 1e6) for n, m in parts.items()}
    assert millions == {"unet": 870, "vae": 84, "llama-3-8b": 8030, "llama-3.2-1b": 1236}
