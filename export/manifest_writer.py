"""The bundle's manifest: its files, what goes in and out of each stage, distance from PyTorch."""

from __future__ import annotations

import datetime
import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..runtime.manifest_reader import SCHEMA, read_manifest
from .checkpoint import Checkpoint
from .schedules import SCHEDULES, STEPS
from .settings import DiffusionSettings
from .stages import StageReports
from .vit3d import ViT3DConfig

Json = dict[str, Any]

_PRODUCERS = {
    "scanside": "scanside",
    "torch": "torch",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "llama_cpp": "llama-cpp-python",
    "gguf": "gguf",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "triton": "triton",
}


def write_manifest(
    folder: Path,
    name: str,
    checkpoint: Checkpoint,
    settings: DiffusionSettings,
    reports: StageReports,
) -> None:
    """Write `manifest.json` over all files that are in `folder`."""
    manifest: Json = {
        "schema": SCHEMA,
        "name": name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "producer": {key: _version(package) for key, package in _PRODUCERS.items()},
        "input": checkpoint.encoder.input,
        "encoders": [_encoder(checkpoint, reports), *reports.localizing_encoders],
        "language": {"file": "language.gguf", **reports.language, **checkpoint.dialogue},
        "diffusion": _diffusion(checkpoint, settings, reports),
        **({"localization": reports.localization} if reports.localization else {}),
        "kernels": reports.kernels,
        "files": _files(folder, reports),
        "licences": _licences(checkpoint.root),
        "parity": {stage: parity.as_dict() for stage, parity in reports.parity.items()},
        **({"ranges": reports.ranges} if reports.ranges else {}),
        **({"fused": reports.fused} if reports.fused else {}),
        "quality": checkpoint.quality,
        "golden": reports.golden,
    }
    # The reader's own check: what it would refuse is never written.
    read_manifest(manifest)
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def tensor_entry(shape: list[int], units: str) -> Json:
    """One input or output of a graph."""
    return {"shape": shape, "dtype": "float32", "units": units}


def _encoder(checkpoint: Checkpoint, reports: StageReports) -> Json:
    c = checkpoint.encoder
    outputs = {
        "clip": tensor_entry([1, c.clip_size], "CLIP image embedding"),
        "latent": tensor_entry([1, *c.latent_shape], "VAE latent times scaling factor"),
        "prefix": tensor_entry([1, c.prefix_length, c.prefix_size], "language model embedding"),
    }
    entry = encoder_entry(c, "decode", "encoder.onnx", outputs)
    if reports.localizer:
        outputs["hidden"] = reports.localizer["inputs"]["hidden"]
        entry["localizer"] = reports.localizer
    return entry


def encoder_entry(c: ViT3DConfig, role: str, file: str, outputs: Json) -> Json:
    """One encoder; its statistics lie in a .npz file of the same name."""
    return {
        "role": role,
        "file": file,
        "arrays": f"{Path(file).stem}.npz",
        "geometry": {
            "grid": list(c.grid),
            "axcodes": c.axcodes,
            "affine": [list(map(float, row)) for row in c.affine],
            "cube": c.cube,
            "pad": c.pad,
            "mapping": c.mapping,
            "align_corners": c.align_corners,
            "cubes": c.num_cubes,
        },
        "normalisation": "voxel",
        "inputs": {"tokens": tensor_entry([1, c.num_cubes, c.token_size], "z-score")},
        "outputs": outputs,
    }


def _diffusion(checkpoint: Checkpoint, settings: DiffusionSettings, reports: StageReports) -> Json:
    return {
        "prompt_encoder": "prompt_encoder.onnx",
        "prompt_tokenizer": "prompt_tokenizer.json",
        **reports.prompt,
        "unet": "unet.onnx",
        "vae_decoder": "vae_decoder.onnx",
        **reports.pictures,
        "arrays": "diffusion.npz",
        "image_size": list(reports.image_size),
        "latent_shape": list(checkpoint.encoder.latent_shape),
        "beta": settings.beta,
        "mix": settings.mix,
        "skip": settings.skip,
        "guidance": settings.guidance,
        "noise_level": settings.noise_level,
        "schedules": {name: list(STEPS) for name in SCHEDULES},
        "schedule": settings.schedule,
        "steps": settings.steps,
    }


def _files(folder: Path, reports: StageReports) -> Json:
    files: Json = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        files[name] = {
            "sha256": _sha256(path),
            "bytes": path.stat().st_size,
            "precision": reports.precision.get(name, "exact"),
            "producer": reports.producer.get(name, "scanside"),
        }
    return files


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _licences(root: Path) -> list[Json]:
    """From the `license:` line in the front matter of a part's README.md, or the checkpoint's."""
    found: list[Json] = []
    for part in ("encoder", "llm", "diffusion", "concept"):
        if not (root / part).is_dir():
            continue
        cards = [card for card in (root / part / "README.md", root / "README.md") if card.is_file()]
        lines = cards[0].read_text(encoding="utf-8").splitlines() if cards else []
        stated = [line.split(":", 1)[1].strip() for line in lines if line.startswith("license:")]
        found.append({"part": part, "licence": stated[0] if stated else "not stated"})
    return found
