"""The compiled picture against diffusers' own pipeline: the shipped bundle, and one of random
weights with the full-size wiring (four levels, two layers each, 77 tokens) at small width.

Both get the same CLIP vector, prompt, start and noise; the pipeline runs as its documentation says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableUnCLIPImg2ImgPipeline

from scanside.export.bundle_writer import REFERENCE
from scanside.export.checkpoint import open_checkpoint
from scanside.export.picture_encoder import PictureEncoder
from scanside.export.schedules import SCHEDULES, make_scheduler
from scanside.export.settings import DiffusionSettings
from scanside.runtime.bundle import Bundle
from scanside.runtime.denoising import Condition
from scanside.runtime.devices import stage_devices
from scanside.runtime.pictures import Pictures
from scanside.runtime.reconstruction import to_pixels
from scanside.runtime.stages import open_stages

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TEXT = "small red circle top left, large blue ring centre, grey background"
SEED, STEPS = 3, 20


@dataclass(frozen=True)
class Pair:
    """A compiled picture stage and the pipeline that it was compiled from."""

    pictures: Pictures
    pipeline: StableUnCLIPImg2ImgPipeline
    settings: DiffusionSettings
    latent_shape: tuple[int, ...]
    clip_size: int

    def condition(self) -> Condition:
        """A made-up answer of a brain encoder."""
        rng = np.random.default_rng(1)
        return Condition(
            clip=rng.standard_normal((1, self.clip_size), np.float32),
            latent=rng.standard_normal((1, *self.latent_shape), np.float32),
            states=self.pictures.prompt.encode(TEXT)[0],
        )


@pytest.fixture(scope="module", params=["reference", "narrow"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param == "reference":
        bundle, root = Bundle.open("reference"), REFERENCE
    else:
        bundle = Bundle.open(request.getfixturevalue("narrow_bundle"))
        root = request.getfixturevalue("narrow_checkpoint")
    checkpoint = open_checkpoint(root)
    stages = open_stages(bundle, stage_devices("cpu"), threads=1)
    assert stages.pictures is not None
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(
        root / "diffusion", torch_dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    yield Pair(
        stages.pictures,
        pipeline,
        DiffusionSettings.from_dict(checkpoint.sampling),
        checkpoint.encoder.latent_shape,
        checkpoint.encoder.clip_size,
    )
    stages.close()


def by_the_pipeline(
    pair: Pair, condition: Condition, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, np.ndarray]:
    """Latent and picture (H, W, 3) in 0..1, with the noise that our seed gives."""
    pipe, settings = pair.pipeline, pair.settings
    rng = np.random.Generator(np.random.Philox(SEED))
    start = rng.standard_normal(condition.latent.shape, np.float32)
    clip_noise = torch.from_numpy(rng.standard_normal(condition.clip.shape, np.float32))
    pipe.scheduler = make_scheduler(schedule, pipe.scheduler.config, STEPS)
    mixed = torch.from_numpy((1 - settings.beta) * condition.latent + settings.beta * start)
    noised = pipe.noise_image_embeddings

    def noise_image_embeddings(image_embeds: torch.Tensor, noise_level: Any, **_: Any):
        return noised(image_embeds, noise_level, noise=clip_noise)

    def fresh(shape: Any, **_: Any) -> torch.Tensor:  # LCM draws after every step but the last
        return torch.from_numpy(rng.standard_normal(tuple(shape), np.float32))

    monkeypatch.setattr(pipe, "noise_image_embeddings", noise_image_embeddings)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", fresh)
    with torch.inference_mode():
        latent = pipe(
            prompt=TEXT,
            image_embeds=torch.from_numpy(condition.clip),
            # given latents are taken as they are, not brought to the scheduler's first noise level
            latents=mixed * pipe.scheduler.init_noise_sigma,
            num_inference_steps=STEPS,
            guidance_scale=settings.guidance,
            noise_level=settings.noise_level,
            output_type="latent",
        ).images
        image = pipe.vae.decode(latent / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return latent.numpy(), pipe.image_processor.postprocess(image, output_type="np")[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_latent_and_picture_after_twenty_steps_are_the_pipelines(
    pair: Pair, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = pair.condition()
    latent, image = by_the_pipeline(pair, condition, schedule, monkeypatch)
    made = pair.pictures.reconstruction
    found = made.denoise(condition, steps=STEPS, seed=SEED, schedule=schedule)
    assert np.abs(found - latent).max() <= 1e-3 * np.abs(latent).max()
    error = np.mean((to_pixels(made.decode(found)) / 255 - image) ** 2)
    assert 10 * np.log10(1 / error) >= 40


def test_the_ranking_encoder_sees_what_the_pipelines_encoder_sees(
    narrow_checkpoint: Path, narrow_bundle: Path
) -> None:
    """From pixels, through the feature extractor's resize, to the vector."""
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(
        narrow_checkpoint / "diffusion", torch_dtype=torch.float32, local_files_only=True
    )
    stages = open_stages(Bundle.open(narrow_bundle), stage_devices("cpu"), threads=1)
    assert stages.pictures is not None
    assert stages.pictures.ranker is not None
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 12, 12)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (128, 128), mode="bicubic").clamp(-1, 1)
    pixels = to_pixels(smooth.numpy())
    given = pipeline.feature_extractor(images=pixels, return_tensors="pt").pixel_values
    with torch.inference_mode():
        wanted = pipeline.image_encoder(given).image_embeds.numpy()
    image = (pixels.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)
    found = stages.pictures.ranker.encode(image)
    # Pillow rounds to whole grey levels after each of its two passes
    assert np.abs(found - wanted).max() <= 1e-2 * np.abs(wanted).max()
    assert stages.pictures.ranker.similarity(image, wanted) > 0.9999
    assert stages.pictures.ranker.similarity(image, -wanted) < -0.9999
    stages.close()


def test_a_wide_picture_is_resized_and_cropped_as_the_feature_extractor_does() -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    )

    class Pixels(torch.nn.Module):
        """Instead of an encoder: hands the pixels on."""

        def forward(self, pixels: torch.Tensor) -> Any:
            return type("Output", (), {"image_embeds": pixels})

    encoder = PictureEncoder(Pixels(), processor.to_dict(), (60, 90))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 90, 3), np.uint8)
    wanted = processor(images=pixels, return_tensors="pt").pixel_values
    image = torch.from_numpy(pixels.transpose(2, 0, 1)[None] / 127.5 - 1).float()
    found = encoder(image)
    assert found.shape == wanted.shape == (1, 3, 32, 32)
    # two roundings to grey levels of 1/255, divided by a spread of at least 0.26
    assert (found - wanted).abs().max() < 2 / 255 / 0.26
