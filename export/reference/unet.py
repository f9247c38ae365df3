"""Stage `unet`: the diffusion decoder, a Stable unCLIP at small width.

Wired as Stable unCLIP 2.1: v-prediction, the noised CLIP vector and its noise level as class
labels, cross-attention to the prompt's text states. It learns from scenes alone and never sees a
brain; in decoding it stays frozen, as in the paper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import (
    StableUnCLIPImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from .clip import SIZE, token_ids
from .targets import Targets, training_targets
from .texts import prompt
from .training import Recipe, train

RECIPE = Recipe(steps=2200, batch=32, learning_rate=1.5e-3, warmup=200)
EMPTY_PROMPT_SHARE = 0.15
"""Share of training steps' rows without a text, so that a picture can be made before the text is
there.
"""


def build() -> UNet2DConditionModel:
    """The denoiser of 4 x 16 x 16 latents."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=SIZE,
        attention_head_dim=cast(Any, (2, 4, 6)),  # annotated as a tuple of one
        norm_num_groups=16,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * SIZE,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 2.1's noise schedule."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        # Few steps must begin where the paper's mixed start lies, at the noisiest timestep.
        timestep_spacing="trailing",
    )


class Conditions:
    """The frozen parts that the denoiser is conditioned on."""

    def __init__(self, checkpoint: Path, clip: Tensor) -> None:
        folder = checkpoint / "diffusion"
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32
        ).eval()
        self.normalizer = StableUnCLIPImageNormalizer(embedding_dim=SIZE)
        self.normalizer.mean.data[:] = clip.mean(0)
        self.normalizer.std.data[:] = clip.std(0)
        # Any: diffusers annotates timesteps as IntTensor, which no tensor is
        self.noising: Any = DDPMScheduler(beta_schedule="squaredcos_cap_v2")

    @torch.no_grad()
    def states(self, texts: list[str]) -> Tensor:
        """Text states (B, L, 128)."""
        return self.text(token_ids(self.tokenizer, texts)).last_hidden_state

    @torch.no_grad()
    def labels(self, clip: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Class labels (B, 256): the noised vector beside its noise level, as the pipeline makes
        them.
        """
        noised = self.noising.add_noise(self.normalizer.scale(clip), noise, level)
        return torch.cat(
            [self.normalizer.unscale(noised), get_timestep_embedding(level, SIZE, True, 0)], 1
        )


def train_unet(checkpoint: Path, work: Path) -> None:
    """Train the denoiser and complete the checkpoint's diffusion/ folder as a
    StableUnCLIPImg2ImgPipeline.
    """
    targets = training_targets(checkpoint, work)
    conditions = Conditions(checkpoint, targets.clip)
    named = [targets.scenes.named(i) for i in range(len(targets.scenes))]
    with torch.no_grad():
        states = torch.cat(
            [
                conditions.states([prompt(s) for s in named[i : i + 256]]).half()
                for i in range(0, len(named), 256)
            ]
        )
    torch.manual_seed(41)
    model = build()
    state = work / "unet.safetensors"
    empty = conditions.states([""])
    train(
        "unet",
        model,
        lambda step: unet_loss(model, conditions, targets, states, empty, step),
        RECIPE,
        state,
    )
    _save(model, conditions, checkpoint)
    state.unlink(missing_ok=True)


def unet_loss(
    model: UNet2DConditionModel,
    conditions: Conditions,
    targets: Targets,
    states: Tensor,
    empty: Tensor,
    step: int,
) -> Tensor:
    """Squared error of the predicted velocity."""
    draw = torch.Generator().manual_seed(42_000_000 + step)
    count = RECIPE.batch
    index = torch.randint(len(targets.scenes), (count,), generator=draw)
    chosen = targets[index]
    silent = torch.rand(count, generator=draw) < EMPTY_PROMPT_SHARE
    text = torch.where(silent[:, None, None], empty, states[index].float())
    level = torch.randint(1000, (count,), generator=draw)
    labels = conditions.labels(chosen.clip, level, torch.randn(chosen.clip.shape, generator=draw))
    noise = torch.randn(chosen.latent.shape, generator=draw)
    time = torch.randint(1000, (count,), generator=draw)
    schedule: Any = scheduler()
    noisy = schedule.add_noise(chosen.latent, noise, time)
    velocity = schedule.get_velocity(chosen.latent, noise, time)
    return F.mse_loss(model(noisy, time, text, class_labels=labels).sample, velocity)


def _save(model: UNet2DConditionModel, conditions: Conditions, checkpoint: Path) -> None:
    folder = checkpoint / "diffusion"
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float16)
    # diffusers would write down where it was read from, a path of this machine.
    vae.register_to_config(_name_or_path="vae")
    StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor.from_pretrained(folder / "feature_extractor"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(
            folder / "image_encoder", dtype=torch.float16
        ),
        image_normalizer=conditions.normalizer.half(),
        image_noising_scheduler=conditions.noising,
        tokenizer=conditions.tokenizer,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float16),
        unet=model.half(),
        scheduler=cast(Any, scheduler()),  # annotated as an enumeration of their names
        vae=vae,
    ).save_pretrained(folder)
