"""Pictures against diffusers' own pipeline with the same weights, noise and steps."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scanside.export.cross_attention import keys_values
from scanside.export.schedules import make_scheduler
from scanside.runtime.bundle import Bundle
from scanside.runtime.denoising import Condition
from scanside.runtime.devices import stage_devices
from scanside.runtime.errors import BundleError, InputError, ScansideError
from scanside.runtime.pictures import Pictures
from scanside.runtime.reconstruction import Reconstruction, to_pixels
from scanside.runtime.stages import open_stages

TEXT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def pictures(bundle: Bundle) -> Iterator[Pictures]:
    stages = open_stages(bundle, stage_devices("cpu"), threads=1)
    assert stages.pictures is not None
    yield stages.pictures
    stages.close()


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path):
    from diffusers import StableUnCLIPImg2ImgPipeline

    pipe = StableUnCLIPImg2ImgPipeline.from_pretrained(tiny_checkpoint / "diffusion")
    pipe = pipe.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_condition(pictures: Pictures, seed: int, text: str = TEXT) -> Condition:
    rng = np.random.default_rng(seed)
    return Condition(
        clip=rng.normal(size=(1, 24)).astype(np.float32),
        latent=rng.normal(size=(1, 4, 8, 8)).astype(np.float32),
        states=pictures.prompt.encode(text)[0],
    )


@torch.inference_mode()
def pipeline_latent(
    pipe, condition: Condition, steps: int, seed: int, monkeypatch: pytest.MonkeyPatch
):
    """The pipeline's own denoising, with the noise that our seed gives."""
    rng = np.random.Generator(np.random.Philox(seed))
    start = rng.standard_normal((1, 4, 8, 8), np.float32)
    clip_noise = torch.from_numpy(rng.standard_normal((1, 24), np.float32))
    noised = pipe.noise_image_embeddings
    monkeypatch.setattr(
        pipe,
        "noise_image_embeddings",
        lambda image_embeds, noise_level, **_: noised(
            image_embeds=image_embeds, noise_level=noise_level, noise=clip_noise
        ),
    )
    return pipe(
        prompt=TEXT,
        image_embeds=torch.from_numpy(condition.clip),
        # given latents are taken as they are, not brought to the scheduler's first noise level
        latents=torch.from_numpy(0.07 * condition.latent + 0.93 * start)
        * pipe.scheduler.init_noise_sigma,
        num_inference_steps=steps,
        guidance_scale=1.0,
        noise_level=0,
        output_type="latent",
    ).images.numpy()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("schedule", ["ddim", "euler", "turbo", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_the_latent_equals_diffusers(
    pictures: Pictures, pipeline, steps: int, schedule: str, monkeypatch: pytest.MonkeyPatch
):
    pipeline.scheduler = make_scheduler(schedule, pipeline.scheduler.config, steps)
    condition = random_condition(pictures, steps)
    found = pictures.reconstruction.denoise(condition, steps=steps, seed=3, schedule=schedule)
    expected = pipeline_latent(pipeline, condition, steps, 3, monkeypatch)
    # float32 rounding over the steps
    assert found == pytest.approx(expected, abs=1e-3 * float(np.abs(expected).max()))


def test_the_picture_equals_diffusers(pictures: Pictures, pipeline):
    latent = random_condition(pictures, 0).latent
    with torch.inference_mode():
        scaled = torch.from_numpy(latent) / pipeline.vae.config.scaling_factor
        image = pipeline.vae.decode(scaled).sample
        expected = pipeline.image_processor.postprocess(image, output_type="np")[0]
    pixels = to_pixels(pictures.reconstruction.decode(latent))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - expected * 255).max() <= 0.51


def test_a_seed_gives_its_picture_again_and_another_seed_another(pictures: Pictures):
    condition, picture = random_condition(pictures, 0), pictures.reconstruction
    first, again, other = (picture.denoise(condition, steps=2, seed=s) for s in (5, 5, 6))
    assert (first == again).all()
    assert not np.allclose(first, other)


def test_the_text_conditions_the_picture(pictures: Pictures):
    picture = pictures.reconstruction
    told, untold = (
        picture.denoise(random_condition(pictures, 0, text), steps=2, seed=0) for text in (TEXT, "")
    )
    assert not np.allclose(told, untold)


def test_prompts_equal_transformers_also_when_they_are_too_long(pictures: Pictures, pipeline):
    for text in ("", TEXT, "A LARGE  green star, " * 30):
        ids = pipeline.tokenizer(
            text, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        with torch.inference_mode():
            hidden = pipeline.text_encoder(ids)[0]
            expected = keys_values(pipeline.unet, hidden).numpy()
        states, cut = pictures.prompt.encode(text)
        assert states == pytest.approx(expected, abs=1e-4)
        assert (cut > 0) == (len(text) > 100)


class FakeEngine:
    """An engine whose answer is a formula."""

    stage, provider = "fake", "fake"

    def __init__(self, inputs, answer):
        self.inputs, self.outputs, self._answer = inputs, {}, answer

    def run(self, feeds):
        return self._answer(feeds)


def reconstruction_with(bundle: Bundle, pictures: Pictures, out, **changes: object):
    spec = replace(bundle.manifest.diffusion, **changes)
    inputs = pictures.reconstruction._denoiser._unet.inputs
    unet = FakeEngine(inputs, lambda feeds: {"out": out(feeds)})
    arrays = bundle.arrays(spec.arrays)
    return Reconstruction(unet, unet, spec, arrays, pictures.prompt.empty)


def test_guidance_pushes_away_from_the_empty_prompt(bundle: Bundle, pictures: Pictures):
    seen: list[dict[str, np.ndarray]] = []

    def out(feeds: dict[str, np.ndarray]) -> np.ndarray:
        seen.append(feeds)
        return np.stack([np.full((4, 8, 8), 2.0), np.full((4, 8, 8), 3.0)]).astype(np.float32)

    condition = random_condition(pictures, 0)
    guided = reconstruction_with(bundle, pictures, out, guidance=5.0)
    plain = reconstruction_with(
        bundle, pictures, lambda _: np.full((1, 4, 8, 8), 7.0, np.float32), guidance=1.0
    )
    # 2 + 5 * (3 - 2) = 7
    a, b = (r.denoise(condition, steps=1, seed=0) for r in (guided, plain))
    assert a == pytest.approx(b)
    assert (seen[0]["states"][0] == pictures.prompt.empty[0]).all()
    assert (seen[0]["states"][1] == condition.states[0]).all()
    assert not seen[0]["class_labels"][0].any()
    assert (seen[0]["sample"][0] == seen[0]["sample"][1]).all()


def test_a_latent_that_overflows_stops_with_its_step(bundle: Bundle, pictures: Pictures):
    calls: list[int] = []

    def out(_: object) -> np.ndarray:
        calls.append(1)
        return np.full((1, 4, 8, 8), np.inf if len(calls) == 3 else 0.1, np.float32)

    broken = reconstruction_with(bundle, pictures, out)
    with pytest.raises(ScansideError, match="not finite after step 3 of 8; check the volume's"):
        broken.denoise(random_condition(pictures, 0), steps=8, seed=0)
    assert len(calls) == 3


def test_a_denoising_that_is_stopped_leaves_its_guess(pictures: Pictures):
    picture, condition = pictures.reconstruction, random_condition(pictures, 0)
    steps = list(picture.steps(condition, steps=4, seed=1))
    assert [(s.number, s.of) for s in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (steps[-1].latent == picture.denoise(condition, steps=4, seed=1)).all()
    # the U-Net has not run again for whoever stops
    stopped = picture.steps(condition, steps=4, seed=1)
    assert (next(stopped).latent == steps[0].latent).all()


def test_the_mix_that_keeps_variance(bundle: Bundle, pictures: Pictures):
    seen: list[np.ndarray] = []

    def out(feeds: dict[str, np.ndarray]) -> np.ndarray:
        seen.append(feeds["sample"])
        return np.zeros((1, 4, 8, 8), np.float32)

    condition = random_condition(pictures, 0)
    for mix in ("literal", "variance"):
        reconstruction_with(bundle, pictures, out, mix=mix).denoise(condition, steps=1, seed=2)
    noise = np.random.Generator(np.random.Philox(2)).standard_normal((1, 4, 8, 8), np.float32)
    assert seen[0] == pytest.approx(0.07 * condition.latent + 0.93 * noise, abs=1e-5)
    kept = np.sqrt(1 - 0.93**2)
    assert seen[1] == pytest.approx(kept * condition.latent + 0.93 * noise, abs=1e-5)


def test_steps_without_a_table_are_refused(pictures: Pictures):
    with pytest.raises(InputError, match="must be one of 1, 2, 4, 8, 10, 20, 50.*got 7"):
        pictures.reconstruction.check_steps(7)
    assert pictures.reconstruction.check_steps(None) == 8
    assert [pictures.reconstruction.steps_within(n) for n in (0.5, 1, 9.9, 1e9)] == [0, 1, 8, 50]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (
            {"schedule": "ancestral"},
            "'schedule' must be one of ddim, .*lcm, which this bundle has tables of; "
            "got 'ancestral'",
        ),
        ({"steps": 7}, "'steps' must be one of 1, 2, .*50, for which .* ddim tables; got 7"),
        ({"beta": 1.2}, "'beta' must be from 0 to 1; got 1.2"),
        ({"beta": float("nan")}, "'beta' must be from 0 to 1; got nan"),
    ],
)
def test_a_wish_that_no_table_fulfils_is_refused_before_any_step(
    pictures: Pictures, wish: dict[str, float | str], said: str
):
    with pytest.raises(InputError, match=said):
        pictures.reconstruction.steps(
            random_condition(pictures, 0), **{"steps": 4, "seed": 0} | wish
        )


def test_a_latent_of_another_size_is_refused(pictures: Pictures):
    condition = random_condition(pictures, 0)
    larger = replace(condition, latent=np.zeros((1, 4, 12, 12), np.float32))
    with pytest.raises(
        InputError, match=r"must have the shape \(1, 4, 8, 8\); got \(1, 4, 12, 12\)"
    ):
        pictures.reconstruction.steps(larger, steps=4, seed=0)


def test_a_missing_table_is_refused(bundle: Bundle, pictures: Pictures):
    spec = bundle.manifest.diffusion
    arrays = bundle.arrays(spec.arrays)
    del arrays["ddim_4"]
    unet = FakeEngine(pictures.reconstruction._denoiser._unet.inputs, dict)
    with pytest.raises(BundleError, match="diffusion.npz lacks ddim_4; export"):
        Reconstruction(unet, unet, spec, arrays, pictures.prompt.empty)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays: arrays.pop("time_embeddings"), "lacks time_embeddings"),
        (
            lambda arrays: arrays.update(times=arrays["times"] + 0.5),
            "timestep [0-9]+ of .* has no embedding",
        ),
        (
            lambda arrays: arrays.update(time_embeddings=arrays["time_embeddings"][1:]),
            "timesteps have embeddings of shape",
        ),
        (
            lambda arrays: arrays.update(time_embeddings=arrays["time_embeddings"][:, 1:]),
            "embeds time in [0-9]+ numbers, unet.onnx takes",
        ),
    ],
)
def test_embeddings_of_time_that_do_not_fit_are_refused(
    bundle: Bundle, pictures: Pictures, change, said: str
):
    spec = bundle.manifest.diffusion
    arrays = bundle.arrays(spec.arrays)
    change(arrays)
    unet = FakeEngine(pictures.reconstruction._denoiser._unet.inputs, dict)
    with pytest.raises(BundleError, match=f"diffusion.npz.*{said}.*; export the bundle again"):
        Reconstruction(unet, unet, spec, arrays, pictures.prompt.empty)
