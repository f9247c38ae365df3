"""Loads the parts of a checkpoint as PyTorch modules in float32, one call a part."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError

from ..runtime.errors import CheckpointError
from .streamed_llm import RESIDENT_BYTES, float32_bytes, open_streamed
from .vit3d import ViT3D

# The return types of both libraries are unions that fit no caller, hence Any.


@contextmanager
def loading(part: str) -> Generator[None]:
    """Turn what the libraries raise on bad weights into one sentence; keep their advice quiet."""
    chatty: tuple[Any, ...] = (transformers.utils.logging, diffusers_logging)
    levels = [log.get_verbosity() for log in chatty]
    for log in chatty:
        log.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as exc:
        reason = str(exc).strip().splitlines()
        raise CheckpointError(
            f"cannot load checkpoint part '{part}/': {reason[0] if reason else type(exc).__name__}"
        ) from exc
    finally:
        for log, level in zip(chatty, levels, strict=True):
            log.set_verbosity(level)


def load_encoder(root: Path) -> ViT3D:
    """The brain encoder with its three heads."""
    with loading("encoder"):
        return ViT3D.load(root / "encoder").eval()


def load_llm(root: Path) -> Any:
    """The language model; one that is too large for memory is read layer by layer."""
    with loading("llm"):
        if is_streamed(root):
            return open_streamed(root / "llm")
        return transformers.LlamaForCausalLM.from_pretrained(
            root / "llm", dtype=torch.float32, use_safetensors=True, local_files_only=True
        ).eval()


def is_streamed(root: Path) -> bool:
    """Whether the language model is too large to be loaded whole."""
    return float32_bytes(root / "llm") > RESIDENT_BYTES


def load_llm_tokenizer(root: Path) -> Any:
    """The language model's tokenizer."""
    with loading("llm"):
        return transformers.AutoTokenizer.from_pretrained(root / "llm", local_files_only=True)


def load_text_encoder(root: Path) -> Any:
    """The diffusion model's text encoder."""
    with loading("diffusion/text_encoder"):
        return transformers.CLIPTextModel.from_pretrained(
            root / "diffusion" / "text_encoder",
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
        ).eval()


def load_prompt_tokenizer(root: Path) -> Any:
    """The diffusion model's tokenizer."""
    with loading("diffusion/tokenizer"):
        return transformers.CLIPTokenizerFast.from_pretrained(
            root / "diffusion" / "tokenizer", local_files_only=True
        )


def load_unet(root: Path) -> Any:
    """The denoiser."""
    with loading("diffusion/unet"):
        return _diffusers_model(UNet2DConditionModel, root, "unet")


def load_vae(root: Path) -> Any:
    """The picture autoencoder."""
    with loading("diffusion/vae"):
        return _diffusers_model(AutoencoderKL, root, "vae")


def load_preview_decoder(root: Path) -> Any:
    """The tiny decoder (TAESD's format), or None without `diffusion/preview_decoder/`."""
    if not (root / "diffusion/preview_decoder").is_dir():
        return None
    with loading("diffusion/preview_decoder"):
        return _diffusers_model(AutoencoderTiny, root, "preview_decoder")


def load_image_encoder(root: Path) -> Any:
    """The image encoder, or None without `diffusion/image_encoder/`."""
    if not (root / "diffusion/image_encoder").is_dir():
        return None
    with loading("diffusion/image_encoder"):
        return transformers.CLIPVisionModelWithProjection.from_pretrained(
            root / "diffusion" / "image_encoder",
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
        ).eval()


def load_feature_extractor(root: Path) -> dict[str, Any]:
    """The feature extractor's configuration."""
    with loading("diffusion/feature_extractor"):
        return transformers.CLIPImageProcessor.from_pretrained(
            root / "diffusion" / "feature_extractor", local_files_only=True
        ).to_dict()


def load_normaliser(root: Path) -> Any:
    """Mean and spread of the CLIP embeddings that the U-Net was trained on."""
    with loading("diffusion/image_normalizer"):
        return _diffusers_model(StableUnCLIPImageNormalizer, root, "image_normalizer")


def load_noising_scheduler(root: Path) -> Any:
    """The schedule that noises CLIP embeddings."""
    with loading("diffusion/image_noising_scheduler"):
        return DDPMScheduler.from_pretrained(
            root / "diffusion" / "image_noising_scheduler", local_files_only=True
        )


def _diffusers_model(model_class: Any, root: Path, name: str) -> Any:
    model = model_class.from_pretrained(
        root / "diffusion" / name,
        torch_dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        low_cpu_mem_usage=False,
    )
    return model.eval()
