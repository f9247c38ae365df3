"""A checkpoint becomes a bundle: same answers as the libraries, complete manifest, all or
nothing."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnxruntime as ort
import pytest
import torch
from diffusers import StableUnCLIPImg2ImgPipeline

from scanside.export import bundle_writer, cli_export
from scanside.export.bundle_writer import export_bundle
from scanside.export.checkpoint import open_checkpoint
from scanside.export.cross_attention import keys_values
from scanside.export.golden import PROMPT, SEED
from scanside.export.schedules import make_scheduler
from scanside.export.settings import DiffusionSettings
from scanside.export.stages import projector_sha256
from scanside.export.torch_chain import TorchChain
from scanside.export.torch_tokens import volume_tokens
from scanside.kernels import Geometry, resample_patchify, resize_matrix
from scanside.runtime.bundle import Bundle
from scanside.runtime.errors import CheckpointError, InputError, ScansideError


@pytest.fixture(scope="module")
def chain(tiny_checkpoint: Path) -> TorchChain:
    return TorchChain.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def golden(tiny_bundle: Path) -> dict[str, np.ndarray]:
    with np.load(tiny_bundle / "golden" / "outputs.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> StableUnCLIPImg2ImgPipeline:
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(
        tiny_checkpoint / "diffusion", torch_dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def manifest_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "manifest.json").read_text())


@cache
def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def run_graph(bundle: Path, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
    return session(bundle / f"{name}.onnx").run(None, inputs)


def class_labels(
    pipeline: StableUnCLIPImg2ImgPipeline, clip: np.ndarray, noise: np.ndarray, level: int = 0
) -> torch.Tensor:
    with torch.inference_mode():
        return pipeline.noise_image_embeddings(
            torch.from_numpy(clip), level, noise=torch.from_numpy(noise)
        )


class FixedNoise:
    """Lets the pipeline noise the CLIP vector with the chain's numbers."""

    def __init__(self, pipeline: StableUnCLIPImg2ImgPipeline, noise: np.ndarray) -> None:
        self.original = pipeline.noise_image_embeddings
        self.noise = torch.from_numpy(noise)

    def __call__(self, image_embeds: torch.Tensor, noise_level: int, **_: Any) -> torch.Tensor:
        return self.original(image_embeds, int(noise_level), noise=self.noise)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("schedule", ["ddim", "euler", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("steps", [1, 20])
def test_the_chains_picture_is_the_pipelines(
    tiny_checkpoint: Path,
    pipeline: StableUnCLIPImg2ImgPipeline,
    golden: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    schedule: str,
    guidance: float,
) -> None:
    settings = DiffusionSettings(guidance=guidance, schedule=schedule, steps=steps)
    chain = TorchChain(open_checkpoint(tiny_checkpoint), settings)
    clip, latent = golden["clip"], golden["latent"]
    start, clip_noise, _ = chain.diffusion.noise(SEED)
    mixed = 0.07 * torch.from_numpy(latent) + 0.93 * torch.from_numpy(start)
    config = pipeline.scheduler.config
    pipeline.scheduler = make_scheduler(schedule, config, steps)
    fixed = FixedNoise(pipeline, clip_noise[None])
    monkeypatch.setattr(pipeline, "noise_image_embeddings", fixed)
    shared: dict[str, Any] = {
        "prompt": PROMPT,
        "image_embeds": torch.from_numpy(clip),
        # given latents are taken as they are, not brought to the scheduler's first noise level
        "latents": mixed * pipeline.scheduler.init_noise_sigma,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
    }
    want = pipeline(**shared, output_type="latent").images
    got, image = chain.image(clip, latent, [PROMPT], SEED)
    # the pipeline's schedulers work in float32
    np.testing.assert_allclose(got, want.numpy(), atol=1e-4 * float(want.abs().max()))
    pixels = pipeline(**shared, output_type="np").images[0]
    np.testing.assert_allclose(
        np.clip(image[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1), pixels, atol=1e-3
    )


def test_the_graphs_and_tables_alone_give_the_golden_picture(
    tiny_bundle: Path, golden: dict[str, np.ndarray]
) -> None:
    """What a runtime does, in ten lines."""
    arrays = np.load(tiny_bundle / "diffusion.npz", allow_pickle=False)
    spec = manifest_of(tiny_bundle)["golden"]
    rng = np.random.Generator(np.random.Philox(spec["seed"]))
    x = 0.07 * golden["latent"] + 0.93 * rng.standard_normal(golden["latent"].shape, np.float32)
    noise = rng.standard_normal(golden["clip"].shape, np.float32)
    noised = (
        golden["clip"] * arrays["clip_scale"] + arrays["clip_shift"] + arrays["clip_noise"] * noise
    )
    labels = np.concatenate([noised, arrays["level_embedding"][None]], 1).astype(np.float32)
    table = arrays[f"{spec['schedule']}_{spec['steps']}"]
    met = [x]
    for row in table[: spec["steps"]]:
        (out,) = run_graph(
            tiny_bundle,
            "unet",
            sample=np.tensordot(row[1 : 1 + len(met)], np.stack(met), 1).astype(np.float32),
            time=arrays["time_embeddings"][arrays["times"] == row[0]],
            states=golden["states"],
            class_labels=labels,
        )
        met.append(out)
    x = np.tensordot(table[-1, 1:], np.stack(met), 1)
    scale = np.abs(golden["image_latent"]).max()
    np.testing.assert_allclose(x, golden["image_latent"], atol=1e-3 * scale)
    (image,) = run_graph(tiny_bundle, "vae_decoder", latent=x.astype(np.float32))
    np.testing.assert_allclose(image, golden["image"], atol=1e-2 * np.abs(golden["image"]).max())


@pytest.mark.parametrize("level", [0, 250])
def test_class_labels_are_the_pipelines(
    tiny_checkpoint: Path, pipeline: StableUnCLIPImg2ImgPipeline, level: int
) -> None:
    with torch.no_grad():  # a normaliser that does something
        pipeline.image_normalizer.mean.copy_(torch.linspace(-1, 1, 24)[None])
        pipeline.image_normalizer.std.copy_(torch.linspace(0.5, 2, 24)[None])
    from scanside.export.conditioning import clip_conditioning

    arrays = clip_conditioning(pipeline.image_normalizer, pipeline.image_noising_scheduler, level)
    rng = np.random.default_rng(0)
    clip, noise = rng.standard_normal((2, 3, 24), np.float32)
    chain = TorchChain(open_checkpoint(tiny_checkpoint))
    chain.diffusion.__dict__["conditioning"] = arrays
    want = class_labels(pipeline, clip, noise, level).numpy()
    np.testing.assert_allclose(chain.diffusion.class_labels(clip, noise), want, atol=1e-5)
    with torch.no_grad():
        pipeline.image_normalizer.mean.zero_()
        pipeline.image_normalizer.std.fill_(1)


def test_prompt_tokenizer_alone_gives_the_pipelines_ids(
    tiny_bundle: Path, pipeline: StableUnCLIPImg2ImgPipeline
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_bundle / "prompt_tokenizer.json"))
    spec = manifest_of(tiny_bundle)["diffusion"]
    for text in ("", PROMPT, "A very long prompt " * 20):
        ids = tokenizer.encode(text, add_special_tokens=False).ids[: spec["prompt_length"] - 2]
        row = [spec["bos_id"], *ids, spec["eos_id"]]
        row += [spec["pad_id"]] * (spec["prompt_length"] - len(row))
        want = pipeline.tokenizer(text, padding="max_length", truncation=True).input_ids
        assert row == want
        with torch.inference_mode():
            states = pipeline.text_encoder(torch.tensor([want]))[0]
            expected = keys_values(pipeline.unet, states).numpy()
        (got,) = run_graph(tiny_bundle, "prompt_encoder", input_ids=np.array([row]))
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_golden_tokens_agree_with_the_kernel(
    tiny_bundle: Path, golden: dict[str, np.ndarray], chain: TorchChain
) -> None:
    """torch's interpolate against our resampling, over orientation, resize, padding, statistics."""
    config = chain.checkpoint.encoder
    image = nib.load(tiny_bundle / "golden" / "volume.nii.gz")
    arrays = np.load(tiny_bundle / "encoder.npz", allow_pickle=False)
    oriented = nib.as_closest_canonical(image).get_fdata().transpose(2, 1, 0)  # RAS -> SAR
    tokens = resample_patchify(
        oriented.astype(np.float32),
        Geometry(grid=config.grid, cube=config.cube, active=arrays["active"], pad=config.pad),
        model_to_source=resize_matrix(oriented.shape, config.grid),
        mean=arrays["mean"].astype(np.float32),
        inv_std=arrays["inv_std"].astype(np.float32),
    )
    np.testing.assert_allclose(tokens, golden["tokens"][0], atol=1e-4)


def test_affine_mapping_goes_through_world_space(chain: TorchChain) -> None:
    """A volume on a finer grid with its own affine, against the kernel with the same matrix."""
    import dataclasses

    config = dataclasses.replace(chain.checkpoint.encoder, mapping="affine")
    checkpoint = dataclasses.replace(chain.checkpoint, encoder=config)
    rng = np.random.default_rng(0)
    affine = np.array(config.affine) @ np.diag([0.8, 0.9, 1.1, 1.0])
    affine[:3, 3] += (3.0, -2.0, 1.0)
    data = rng.standard_normal((22, 23, 17)).astype(np.float32)
    tokens = volume_tokens(nib.Nifti1Image(data, affine), checkpoint)[0]
    want = resample_patchify(
        data,
        Geometry(grid=config.grid, cube=config.cube, active=checkpoint.active, pad=config.pad),
        model_to_source=np.linalg.inv(affine) @ np.array(config.affine),
        mean=checkpoint.mean,
        inv_std=checkpoint.inv_std,
    )
    np.testing.assert_allclose(tokens, want, atol=1e-4)


def test_text_is_transformers_greedy_answer(chain: TorchChain) -> None:
    """`generate` with a cache against the plain argmax over the whole sequence."""
    rng = np.random.default_rng(0)
    prefix = rng.standard_normal((2, 12, 256), np.float32)
    got = chain.language.generate(prefix, "caption", max_tokens=6)
    rows = chain.language.prompt_embeddings(
        prefix, chain.checkpoint.dialogue["instructions"]["caption"]
    )
    with torch.inference_mode():
        for _ in range(6):
            token = chain.language.llm(inputs_embeds=rows).logits[:, -1].argmax(-1)
            rows = torch.cat([rows, chain.language.llm.get_input_embeddings()(token)[:, None]], 1)
            assert [ids.pop(0) for ids in got] == token.tolist()
    assert chain.language.text(prefix, "ask", question="What is it?", max_tokens=3) == [
        chain.language.tokenizer.decode(ids).strip()
        for ids in chain.language.generate(prefix, "ask", question="What is it?", max_tokens=3)
    ]


def test_manifest_lists_every_file_with_its_hash(tiny_bundle: Path) -> None:
    files = manifest_of(tiny_bundle)["files"]
    on_disk = {p.relative_to(tiny_bundle).as_posix() for p in tiny_bundle.rglob("*") if p.is_file()}
    assert set(files) == on_disk - {"manifest.json"}
    for name, entry in files.items():
        content = (tiny_bundle / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
    assert str(Path.home()) not in (tiny_bundle / "manifest.json").read_text()


def test_licences_come_from_the_model_cards(tiny_bundle: Path) -> None:
    found = {row["part"]: row["licence"] for row in manifest_of(tiny_bundle)["licences"]}
    assert found == dict.fromkeys(("encoder", "llm", "diffusion", "concept"), "cc0-1.0")


def test_the_runtimes_reader_takes_the_bundle(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle, always_hash=True)
    assert bundle.manifest.name == "tiny"
    assert bundle.manifest.golden is not None
    assert bundle.manifest.golden.image_prompt == PROMPT


def test_every_stage_is_close_to_pytorch(tiny_bundle: Path) -> None:
    parity = manifest_of(tiny_bundle)["parity"]
    assert set(parity) == {
        *("encoder", "prompt_encoder", "unet", "vae_decoder", "language"),
        *("preview_decoder", "image_encoder", "localizer", "concept_encoder"),
    }
    assert max(p["relative"] for p in parity.values()) <= 1e-4
    assert min(p["trials"] for p in parity.values()) >= 1


def test_language_and_encoder_share_the_projectors_identity(
    tiny_bundle: Path, chain: TorchChain
) -> None:
    assert manifest_of(tiny_bundle)["language"]["projector_sha256"] == projector_sha256(chain)


def test_golden_volume_of_the_checkpoint_is_used(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from scanside.export.golden import golden_volume

    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (copy / "golden").mkdir()
    mine = nib.Nifti1Image(np.ones((20, 24, 18), np.float32), np.eye(4))
    nib.save(mine, copy / "golden" / "volume.nii.gz")
    image = golden_volume(open_checkpoint(copy), tmp_path / "volume.nii.gz")
    assert image.get_fdata().min() == 1


# What is refused: one sentence each, and nothing written.

Damage = Callable[[Path], None]


def edit_json(file: str, **changes: Any) -> Damage:
    def damage(root: Path) -> None:
        path = root / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def remove(path: str) -> Damage:
    def damage(root: Path) -> None:
        target = root / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return damage


def pickled_llm(root: Path) -> None:
    (root / "llm" / "model.safetensors").rename(root / "llm" / "pytorch_model.bin")


def truncated_unet(root: Path) -> None:
    path = root / "diffusion" / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def negative_std(root: Path) -> None:
    path = root / "geometry" / "std.nii.gz"
    std = nib.load(path)
    nib.save(nib.Nifti1Image(-np.asarray(std.dataobj), std.affine), path)


def coarse_mask(root: Path) -> None:
    path = root / "geometry" / "mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((10, 12, 9), np.uint8), np.eye(4)), path)


def truncated_mask(root: Path) -> None:
    path = root / "geometry" / "mask.nii.gz"
    path.write_bytes(path.read_bytes()[:200])


def unknown_setting(root: Path) -> None:
    (root / "diffusion" / "sampling.json").write_text('{"stpes": 4}')


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no encoder": (remove("encoder"), "no part 'encoder/'"),
    "no diffusion": (remove("diffusion"), "no part 'diffusion/unet/'"),
    "no vae": (remove("diffusion/vae"), "no part 'diffusion/vae/'"),
    "no llm": (remove("llm"), "no part 'llm/'"),
    "no geometry": (remove("geometry"), "no file 'geometry/mask.nii.gz'"),
    "no dialogue": (remove("llm/dialogue.json"), "no file 'llm/dialogue.json'"),
    "no weights": (remove("encoder/model.safetensors"), "'encoder/' has no model.safetensors"),
    "pickle": (pickled_llm, r"'llm/' holds pickled weights \(pytorch_model.bin\)"),
    "ViT-H unCLIP": (
        edit_json("diffusion/unet/config.json", projection_class_embeddings_input_dim=2048),
        r"encoder clip_size is 24, diffusion/unet class labels / 2 \(2048 / 2\) is 1024",
    ),
    "normaliser": (
        edit_json("diffusion/image_normalizer/config.json", embedding_dim=1024),
        "encoder clip_size is 24, diffusion/image_normalizer is 1024",
    ),
    "concept": (edit_json("concept/config.json", projection_dim=512), "24, concept is 512"),
    "llm width": (
        edit_json("llm/config.json", hidden_size=4096),
        "encoder prefix_size is 256, llm hidden_size is 4096",
    ),
    "latent size": (
        edit_json("diffusion/unet/config.json", sample_size=96),
        r"height and width is \[8, 8\], diffusion/unet sample_size is \[96, 96\]",
    ),
    "latent channels": (
        edit_json("diffusion/vae/config.json", latent_channels=16),
        "encoder latent_shape channels is 4, diffusion/vae is 16",
    ),
    "text width": (
        edit_json("diffusion/unet/config.json", cross_attention_dim=768),
        "text_encoder hidden_size is 32, diffusion/unet cross_attention_dim is 768",
    ),
    "mask": (
        edit_json("encoder/config.json", keep_fraction=1.0, num_cubes=40),
        "encoder num_cubes is 40, geometry/mask.nii.gz keeps 1[0-9] cubes",
    ),
    "damaged mask": (truncated_mask, "cannot read .*mask.nii.gz"),
    "mask grid": (coarse_mask, r"mask.nii.gz has shape \(10, 12, 9\).*grid \(20, 24, 18\)"),
    "statistics": (negative_std, "and std >= 0"),
    "scheduler": (
        edit_json("diffusion/scheduler/scheduler_config.json", _class_name="FlowMatchEuler"),
        "scheduler is a FlowMatchEuler, which no Stable unCLIP.*for example DDIMScheduler",
    ),
    "prediction": (
        edit_json("diffusion/scheduler/scheduler_config.json", prediction_type="flow"),
        "prediction_type 'flow'; expected one of epsilon, v_prediction, sample",
    ),
    "image encoder": (
        edit_json("diffusion/image_encoder/config.json", projection_dim=1024),
        "encoder clip_size is 24, diffusion/image_encoder is 1024",
    ),
    "tiny decoder": (
        edit_json("diffusion/preview_decoder/config.json", latent_channels=16),
        "latent_shape channels is 4, diffusion/preview_decoder is 16",
    ),
    "other pipeline": (
        edit_json("diffusion/model_index.json", _class_name="StableDiffusionPipeline"),
        "is a StableDiffusionPipeline; expected a StableUnCLIPImg2ImgPipeline",
    ),
    "not a llama": (edit_json("llm/config.json", model_type="qwen2"), "model_type 'qwen2'"),
    "not JSON": (lambda root: (root / "encoder" / "config.json").write_text("{"), "cannot read"),
    "unknown setting": (unknown_setting, r"sampling.json has unknown keys \['stpes'\]"),
    "unknown key": (edit_json("encoder/config.json", num_cuebs=1), "unknown keys.*num_cuebs"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_checkpoint_that_cannot_work_is_refused_in_one_sentence(
    name: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    damage, message = DAMAGES[name]
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        export_bundle(copy, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]


def test_damaged_weights_name_their_part(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    truncated_unet(copy)
    with pytest.raises(CheckpointError, match="cannot load checkpoint part 'diffusion/unet/'"):
        _ = TorchChain.open(copy).diffusion.unet


def test_a_full_disk_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any, folder: Path, *rest: Any, **options: Any) -> Any:
        (folder / "encoder.onnx").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_writer, "write_encoder", full)
    with pytest.raises(ScansideError, match="No space left on device; nothing was left behind"):
        export_bundle(tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_writer, "write_encoder", stop)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_holds_something_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="exists and is not an empty folder"):
            export_bundle(tiny_checkpoint, out)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": ["abacus"]}, "'targets' must be of cpu, cuda, rtx; got 'abacus'"),
        ({"precision": "fp8"}, "'precision' must be of fp32, fp16, int8; got 'fp8'"),
        ({"quantize": "q3"}, "'quantize' must be one of f32"),
    ],
)
def test_unknown_choices_list_the_known_ones(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export_bundle("random:tiny", tmp_path / "out", **arguments)


@pytest.mark.parametrize(
    "setting",
    [
        {"beta": 1.5},
        {"guidance": 0.5},
        {"schedule": "heun"},
        {"steps": 7},
        {"mix": "half"},
        {"skip": 1.0},
    ],
)
def test_settings_out_of_range_are_named(setting: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"'{next(iter(setting))}' must be"):
        DiffusionSettings(**setting)


def test_missing_checkpoint_and_unknown_random_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint directory at"):
        export_bundle(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="random:tiny, .*random:narrow"):
        export_bundle("random:huge", tmp_path / "out")


def test_the_verb_prints_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def fake(checkpoint: str, out: Path, **options: Any) -> Path:
        seen.update(options, checkpoint=checkpoint)
        return out

    monkeypatch.setattr(bundle_writer, "export_bundle", fake)
    parser = argparse.ArgumentParser()
    cli_export.add_arguments(parser)
    args = parser.parse_args(["random:tiny", str(tmp_path / "b"), "--quantize", "q8_0"])
    assert cli_export.run(args) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "b")
    assert seen == {
        "checkpoint": "random:tiny",
        "targets": ["cpu"],
        "precision": "fp32",
        "quantize": "q8_0",
        "fuse": "none",
    }
