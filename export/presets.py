"""Sizes of the checkpoints that `random:NAME` makes: data only, no torch.

`paper` is the full system of "Neuro-Vision to Language" (arXiv 2404.19438) with Stable unCLIP 2.1-L
and Llama-3-8B; `paper-1b` swaps in a language model of Llama-3.2-1B's shape, `paper-pictures` a toy
one of 8B's width, for work on the other stages. `narrow` has the full wiring of the picture stage
at small width; `tiny` has every part at toy width, `tiny-three` three encoders beside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Configurations of all parts of one checkpoint, in the words of the libraries they are for."""

    cubes: int
    """Active cubes N that the made-up mask keeps."""
    encoder: Config
    """`ViT3DConfig` without `num_cubes`."""
    other_cubes: tuple[int, ...] = ()
    """Edges of the cubes of further encoders, which localize concepts."""
    unet: Config
    vae: Config
    prompt_text: Config
    """The diffusion model's text encoder (`CLIPTextConfig`)."""
    preview: Config
    """The tiny decoder for previews, TAESD's format (`AutoencoderTiny`)."""
    image: Config
    """The pipeline's image encoder (`CLIPVisionConfig`)."""
    concept_text: Config
    """`CLIPTextConfig` of the concept encoder; its projection has the encoder's `clip_size`."""
    llm: Config
    """`LlamaConfig`."""
    llm_dtype: str
    """On-disk type of the language model: its families ship bfloat16."""


_CLIP_L: Config = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
}

_PAPER = Preset(
    cubes=96,
    encoder={},
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "layers_per_block": 2,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 1536,
    },
    vae={
        "sample_size": 512,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "scaling_factor": 0.18215,
    },
    preview={},
    prompt_text={
        "hidden_size": 1024,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "projection_dim": 512,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "hidden_act": "gelu",
    },
    image={
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "projection_dim": 768,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    },
    concept_text=_CLIP_L,
    llm={
        "vocab_size": 128256,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    llm_dtype="bfloat16",
)

_PAPER_1B = Preset(
    cubes=_PAPER.cubes,
    encoder={"prefix_size": 2048, "prefix_hidden_size": 2048},
    unet=_PAPER.unet,
    vae=_PAPER.vae,
    preview=_PAPER.preview,
    prompt_text=_PAPER.prompt_text,
    image=_PAPER.image,
    concept_text=_CLIP_L,
    llm=_PAPER.llm
    | {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    llm_dtype="bfloat16",
)

_TINY_TEXT: Config = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "projection_dim": 24,
    "max_position_embeddings": 24,
    "vocab_size": 600,
    "hidden_act": "gelu",
}

_TINY = Preset(
    cubes=12,
    encoder={
        "grid": (20, 24, 18),
        "affine": ((0, 0, 7.5, -67.5), (0, 7.5, 0, -90.0), (7.5, 0, 0, -60.0), (0, 0, 0, 1)),
        "cube": 6,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "head_hidden_size": 96,
        "clip_size": 24,
        "latent_shape": (4, 8, 8),
        "prefix_size": 256,
        "prefix_hidden_size": 128,
    },
    unet={
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": [2, 4],
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 48,
    },
    vae={
        "sample_size": 32,
        "block_out_channels": [8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.18215,
    },
    preview={
        "encoder_block_out_channels": [8, 8, 8],
        "decoder_block_out_channels": [8, 8, 8],
        "num_encoder_blocks": [1, 1, 1],
        "num_decoder_blocks": [1, 1, 1],
    },
    prompt_text=_TINY_TEXT,
    image={
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "projection_dim": 24,
        "image_size": 32,
        "patch_size": 8,
    },
    concept_text=_TINY_TEXT,
    llm={
        "vocab_size": 512,
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    llm_dtype="float16",
)

_NARROW = replace(
    _TINY,
    encoder=_TINY.encoder | {"latent_shape": (4, 16, 16), "clip_size": 32},
    unet=_PAPER.unet
    | {
        "sample_size": 16,
        "block_out_channels": [32, 64, 128, 128],
        "attention_head_dim": [1, 2, 4, 4],
        "cross_attention_dim": 64,
        "projection_class_embeddings_input_dim": 64,
    },
    vae=_PAPER.vae | {"sample_size": 128, "block_out_channels": [32, 32, 64, 64]},
    preview={
        "encoder_block_out_channels": [16] * 4,
        "decoder_block_out_channels": [16] * 4,
    },
    prompt_text=_PAPER.prompt_text
    | {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 1024,
    },
    image=_PAPER.image
    | {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "projection_dim": 32,
        "image_size": 56,
    },
    concept_text=_TINY_TEXT | {"projection_dim": 32},
)

_PAPER_PICTURES = replace(
    _PAPER,
    llm=_TINY.llm
    | {
        "hidden_size": _PAPER.llm["hidden_size"],
        "num_hidden_layers": 1,
        "head_dim": 64,
        "intermediate_size": 256,
    },
    llm_dtype=_TINY.llm_dtype,
)

PRESETS: dict[str, Preset] = {
    "tiny": _TINY,
    "tiny-three": replace(_TINY, other_cubes=(5, 4)),
    "narrow": _NARROW,
    "paper-pictures": _PAPER_PICTURES,
    "paper-1b": _PAPER_1B,
    "paper": _PAPER,
}
