"""`random:NAME`: checkpoints of all parts with random weights, at the sizes of `presets.py`.

They decode nothing, but they have the format, the wiring and the sizes of the real thing: what
latency, memory and the export itself are tested on. One part is in memory at a time, the language
model one shard at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import nibabel as nib
import numpy as np
import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from ..runtime.errors import InputError
from .cubes import active_cubes, posterior_mask
from .dialogue import DIALOGUE, write_dialogue
from .presets import PRESETS, Config, Preset
from .random_weights import random_tensors, save_sharded
from .tokenizer_training import train_clip_tokenizer, train_llama_tokenizer
from .vit3d import ViT3D, ViT3DConfig

_NOUNS = ("circle", "square", "triangle", "star", "cross", "ring", "person", "dog", "house", "tree")
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")


def corpus() -> list[str]:
    """The few sentences on which the tokenizers of a random checkpoint are trained."""
    places = ("left of", "right of", "above", "below", "in front of", "behind")
    scenes = [f"A {c} {n} {p} a small {c} {n}." for c in _COLOURS for n in _NOUNS for p in places]
    template = DIALOGUE["template"]
    turns = [
        template["before_prefix"] + template["first_turn"].format(instruction=i)
        for i in DIALOGUE["instructions"].values()
    ]
    return scenes + turns * 20


def write_random_checkpoint(
    name: str, folder: Path, *, seed: int = 0, progress: Callable[[str], None] = lambda _: None
) -> Path:
    """Write a checkpoint of the preset `name` into `folder`.

    Parameters
    ----------
    name : {"tiny", "tiny-three", "narrow", "paper-pictures", "paper-1b", "paper"}
        `paper` writes about 21 GB, `paper-1b` about 7 GB, `paper-pictures` about 4 GB.
    folder : Path
        Created; existing files of the same names are overwritten.
    seed : int
        Same seed, same weights.
    progress : callable
        Is told each part's name before it is written.

    Returns
    -------
    folder : Path

    Raises
    ------
    InputError
        The preset is unknown.
    """
    if name not in PRESETS:
        known = ", ".join(f"random:{p}" for p in PRESETS)
        raise InputError(f"no random checkpoint is called 'random:{name}'; expected one of {known}")
    preset = PRESETS[name]
    parts = {
        "encoder": _write_encoder,
        "diffusion": _write_diffusion,
        "llm": write_llm,
        "concept": _write_concept,
    }
    for i, (part, write) in enumerate(parts.items()):
        progress(f"random weights: {part}")
        (folder / part).mkdir(parents=True, exist_ok=True)
        write(preset, folder / part, seed + 100 * i)
    card = "---\nlicense: cc0-1.0\n---\nRandom weights, made by `scanside export`.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _write_encoder(preset: Preset, folder: Path, seed: int) -> None:
    config = ViT3DConfig(num_cubes=preset.cubes, **preset.encoder)
    torch.manual_seed(seed)
    ViT3D(config).save(folder)
    geometry = folder.parent / "geometry"
    geometry.mkdir(exist_ok=True)
    mask = posterior_mask(config.grid, config.cube, config.pad, preset.cubes)
    if len(active_cubes(mask, config.cube, config.pad, config.keep_fraction)) != preset.cubes:
        raise AssertionError(f"the made-up mask must keep {preset.cubes} cubes")
    rng = np.random.default_rng(seed)
    volumes = {
        "mask": mask,
        "mean": (rng.standard_normal(config.grid) * 0.3 * mask).astype(np.float32),
        "std": (rng.uniform(0.8, 1.6, config.grid) * mask).astype(np.float32),
    }
    for name, volume in volumes.items():
        nib.save(nib.Nifti1Image(volume, np.array(config.affine)), geometry / f"{name}.nii.gz")
    for cube in preset.other_cubes:
        count = len(active_cubes(mask, cube, config.pad, config.keep_fraction))
        torch.manual_seed(seed + cube)
        other = ViT3D(replace(config, cube=cube, num_cubes=count))
        other.save(folder.with_name(f"encoder_{cube}"))


def write_llm(preset: Preset, folder: Path, seed: int) -> None:
    """Write a preset's language model with tokenizer and dialogue template into `folder`."""
    size = min(preset.llm["vocab_size"], 1024)
    tokenizer: Any = train_llama_tokenizer(corpus(), folder, size)
    config = transformers.LlamaConfig(
        **preset.llm,
        architectures=["LlamaForCausalLM"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype=preset.llm_dtype,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    config.save_pretrained(folder)
    dtype = getattr(torch, preset.llm_dtype)
    save_sharded(random_tensors(model, seed, dtype), folder, "model")
    write_dialogue(folder)


def _write_concept(preset: Preset, folder: Path, seed: int) -> None:
    config = _text_config(preset.concept_text, folder)
    _write_transformer(transformers.CLIPTextModelWithProjection, config, folder, seed)


def _text_config(values: Config, tokenizer_folder: Path) -> transformers.CLIPTextConfig:
    tokenizer: Any = train_clip_tokenizer(
        corpus(),
        tokenizer_folder,
        min(values["vocab_size"], 1024),
        values["max_position_embeddings"],
    )
    return transformers.CLIPTextConfig(
        **values, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )


def _write_transformer(
    model_class: Any,
    config: transformers.PretrainedConfig,
    folder: Path,
    seed: int,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = model_class(config)
    save_sharded(random_tensors(model, seed, torch.float16), folder, "model")


def _write_diffusers(model: Any, folder: Path, seed: int) -> None:
    model.save_config(folder)
    save_sharded(random_tensors(model, seed, torch.float16), folder, "diffusion_pytorch_model")


def _write_diffusion(preset: Preset, folder: Path, seed: int) -> None:
    clip_size = preset.image["projection_dim"]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**preset.unet)
        vae = AutoencoderKL(**preset.vae)
        tiny = AutoencoderTiny(**preset.preview)
        normaliser = StableUnCLIPImageNormalizer(clip_size)
    _write_diffusers(unet, folder / "unet", seed)
    _write_diffusers(vae, folder / "vae", seed + 1)
    _write_diffusers(normaliser, folder / "image_normalizer", seed + 2)
    _write_diffusers(tiny, folder / "preview_decoder", seed + 5)
    text = _text_config(preset.prompt_text, folder / "tokenizer")
    _write_transformer(transformers.CLIPTextModel, text, folder / "text_encoder", seed + 3)
    _write_transformer(
        transformers.CLIPVisionModelWithProjection,
        transformers.CLIPVisionConfig(**preset.image),
        folder / "image_encoder",
        seed + 4,
    )
    edge = preset.image["image_size"]
    transformers.CLIPImageProcessor(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}
    ).save_pretrained(folder / "feature_extractor")
    _write_schedulers(folder)
    (folder / "model_index.json").write_text(json.dumps(_MODEL_INDEX, indent=2))


def _write_schedulers(folder: Path) -> None:
    """Stable Diffusion 2.1's noise; steps begin at the last timestep, where Eq. 4's start
    belongs."""
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(
        folder / "image_noising_scheduler"
    )


_MODEL_INDEX = {
    "_class_name": "StableUnCLIPImg2ImgPipeline",
    "_diffusers_version": diffusers.__version__,
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"],
    "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
