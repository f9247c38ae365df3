"""Reads a checkpoint directory and refuses, before any weight is loaded, one that cannot compile.

The directory holds what others already write: a ViT3D (`encoder/`), a diffusers
StableUnCLIPImg2ImgPipeline (`diffusion/`), a Hugging Face Llama with its tokenizer (`llm/`),
optionally a CLIP text model with projection (`concept/`), and the mask and statistics of the model
grid (`geometry/`). Weights are safetensors; pickles are never opened.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from ..runtime.errors import CheckpointError, InputError
from .cubes import active_cubes, cut_cubes
from .dialogue import TEMPLATES
from .schedules import check_scheduler
from .vit3d import ViT3DConfig

Json = dict[str, Any]

PIPELINE = "StableUnCLIPImg2ImgPipeline"

# part -> (folder, configuration, stem of its weights); a name without suffix stands for .json
_PARTS: dict[str, tuple[str, str]] = {
    "encoder": ("config.json", "model"),
    "llm": ("config.json", "model"),
    "diffusion/unet": ("config.json", "diffusion_pytorch_model"),
    "diffusion/vae": ("config.json", "diffusion_pytorch_model"),
    "diffusion/image_normalizer": ("config.json", "diffusion_pytorch_model"),
    "diffusion/text_encoder": ("config.json", "model"),
}
_FILES = (
    "geometry/mask.nii.gz",
    "geometry/mean.nii.gz",
    "geometry/std.nii.gz",
    "diffusion/model_index.json",
    "diffusion/tokenizer/tokenizer_config.json",
    "diffusion/scheduler/scheduler_config.json",
    "diffusion/image_noising_scheduler/scheduler_config.json",
    "llm/dialogue.json",
)
# may be left out, but are whole where they are there
_OPTIONAL_PARTS: dict[str, tuple[str, str]] = {
    "diffusion/image_encoder": ("config.json", "model"),
    "diffusion/preview_decoder": ("config.json", "diffusion_pytorch_model"),
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A directory whose parts are all there and fit together."""

    root: Path
    encoder: ViT3DConfig
    llm: Json
    """`LlamaConfig` as it stands on disk."""
    unet: Json
    text_encoder: Json
    scheduler: Json
    dialogue: Json
    """Template, instructions and token limits."""
    sampling: Json
    """Defaults of the picture stage (`diffusion/sampling.json`), {} without that file."""
    quality: Json
    """Scores measured on this checkpoint (`quality.json`), {} without that file."""
    active: NDArray[np.int64]
    """(N,) flat C-order indices of the cubes that become tokens."""
    mean: NDArray[np.float32]
    """(N, C) per-voxel mean of the active cubes, in input units."""
    inv_std: NDArray[np.float32]
    """(N, C) 1 / standard deviation; 0 masks a voxel."""

    @property
    def golden_volume(self) -> Path | None:
        """The volume that the checkpoint brings for the golden run, if it does."""
        path = self.root / "golden" / "volume.nii.gz"
        return path if path.exists() else None


def open_checkpoint(root: Path) -> Checkpoint:
    """Read configurations and statistics, and check that everything fits together.

    Parameters
    ----------
    root : Path
        The directory.

    Raises
    ------
    InputError
        There is no such directory.
    CheckpointError
        A part is missing, pickled, of another kind, or of a width that another part does not take.
    """
    if not root.is_dir():
        raise InputError(f"no checkpoint directory at {root}")
    _require_parts(root)
    configs = {part: _json(root / part / _PARTS[part][0]) for part in _PARTS}
    try:
        encoder = ViT3DConfig.from_dict(configs["encoder"])
    except TypeError as exc:
        raise CheckpointError(str(exc)) from exc
    _check_kinds(root, configs)
    _check_widths(root, encoder, configs)
    active, mean, inv_std = read_geometry(root / "geometry", encoder)
    return Checkpoint(
        root=root,
        encoder=encoder,
        llm=configs["llm"],
        unet=configs["diffusion/unet"],
        text_encoder=configs["diffusion/text_encoder"],
        scheduler=_read_scheduler(root / "diffusion/scheduler/scheduler_config.json"),
        dialogue=_read_dialogue(root / "llm/dialogue.json"),
        sampling=_optional_json(root / "diffusion/sampling.json"),
        quality=_optional_json(root / "quality.json"),
        active=active,
        mean=mean,
        inv_std=inv_std,
    )


def _require_parts(root: Path) -> None:
    there = {part: files for part, files in _OPTIONAL_PARTS.items() if (root / part).is_dir()}
    for part, (config, stem) in (_PARTS | there).items():
        folder = root / part
        if not folder.is_dir():
            raise CheckpointError(f"checkpoint {root} has no part '{part}/'")
        if not (folder / config).is_file():
            raise CheckpointError(f"checkpoint part '{part}/' has no {config}")
        if not any((folder / f"{stem}.safetensors{s}").is_file() for s in ("", ".index.json")):
            raise CheckpointError(_no_weights(folder, part, stem))
    for file in _FILES:
        if not (root / file).is_file():
            raise CheckpointError(f"checkpoint {root} has no file '{file}'")


def _no_weights(folder: Path, part: str, stem: str) -> str:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickled:
        return (
            f"checkpoint part '{part}/' holds pickled weights ({pickled[0]}), which can run code "
            f"and are never opened; save it as {stem}.safetensors (save_pretrained does)"
        )
    return f"checkpoint part '{part}/' has no {stem}.safetensors"


def _json(path: Path) -> Json:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise CheckpointError(f"cannot read {path}: {exc}") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object; got {type(value).__name__}")
    return cast("Json", value)


def _optional_json(path: Path) -> Json:
    return _json(path) if path.is_file() else {}


def _check_kinds(root: Path, configs: dict[str, Json]) -> None:
    kind = _json(root / "diffusion/model_index.json").get("_class_name")
    if kind != PIPELINE:
        raise CheckpointError(f"diffusion/ is a {kind}; expected a {PIPELINE}")
    language = configs["llm"].get("model_type")
    if language != "llama":
        raise CheckpointError(
            f"llm/ is of model_type {language!r}; supported is 'llama' "
            "(Llama 2, Vicuna, Llama 3, 3.1, 3.2)"
        )
    embedding = configs["diffusion/unet"].get("class_embed_type")
    if embedding != "projection":
        raise CheckpointError(
            f"diffusion/unet has class_embed_type {embedding!r}; Stable unCLIP needs 'projection'"
        )


def _check_widths(root: Path, encoder: ViT3DConfig, configs: dict[str, Json]) -> None:
    unet, vae = configs["diffusion/unet"], configs["diffusion/vae"]
    normaliser = configs["diffusion/image_normalizer"]
    text, llm = configs["diffusion/text_encoder"], configs["llm"]
    channels, height, width = encoder.latent_shape
    labels = unet.get("projection_class_embeddings_input_dim") or 0
    clip, sample = "encoder clip_size", "encoder latent_shape"
    size = unet.get("sample_size")
    rows: list[tuple[str, Any, str, Any]] = [
        (clip, encoder.clip_size, f"diffusion/unet class labels / 2 ({labels} / 2)", labels // 2),
        (clip, encoder.clip_size, "diffusion/image_normalizer", normaliser.get("embedding_dim")),
        ("encoder prefix_size", encoder.prefix_size, "llm hidden_size", llm.get("hidden_size")),
        (f"{sample} channels", channels, "diffusion/unet in_channels", unet.get("in_channels")),
        (f"{sample} channels", channels, "diffusion/vae", vae.get("latent_channels")),
        (f"{sample} height and width", [height, width], "diffusion/unet sample_size", _pair(size)),
        (
            "diffusion/text_encoder hidden_size",
            text.get("hidden_size"),
            "diffusion/unet cross_attention_dim",
            unet.get("cross_attention_dim"),
        ),
    ]
    optional = (
        ("concept", "projection_dim", clip, encoder.clip_size),
        ("diffusion/image_encoder", "projection_dim", clip, encoder.clip_size),
        ("diffusion/preview_decoder", "latent_channels", f"{sample} channels", channels),
    )
    for part, key, name, width in optional:
        config = root / part / "config.json"
        if config.is_file():
            rows.append((name, width, part, _json(config).get(key)))
    for left, a, right, b in rows:
        if a != b:
            raise CheckpointError(f"checkpoint parts do not fit: {left} is {a}, {right} is {b}")


def _read_scheduler(path: Path) -> Json:
    config = _json(path)
    check_scheduler(config)
    return config


def _pair(size: Any) -> Any:
    return [size, size] if isinstance(size, int) else size


def _read_dialogue(path: Path) -> Json:
    dialogue = _json(path)
    missing = {"template", "instructions", "max_tokens"} - set(dialogue)
    if missing:
        raise CheckpointError(f"llm/dialogue.json lacks {', '.join(sorted(missing))}")
    template = dialogue["template"]
    if isinstance(template, str):
        if template not in TEMPLATES:
            raise CheckpointError(
                f"llm/dialogue.json asks for the template {template!r}; known are "
                f"{', '.join(TEMPLATES)}; or write one out"
            )
        template = TEMPLATES[template]
    return dialogue | {"template": template}


def read_geometry(
    folder: Path, encoder: ViT3DConfig
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Active cubes with their statistics, brought into token order."""
    mask = _on_grid("geometry/mask.nii.gz", _read_volume(folder / "mask.nii.gz"), encoder)
    active = active_cubes(mask, encoder.cube, encoder.pad, encoder.keep_fraction)
    if len(active) != encoder.num_cubes:
        raise CheckpointError(
            f"checkpoint parts do not fit: encoder num_cubes is {encoder.num_cubes}, "
            f"geometry/mask.nii.gz keeps {len(active)} cubes of edge {encoder.cube}"
        )
    mean, std = (
        _on_grid(f"geometry/{n}", _read_volume(folder / n).astype(np.float32), encoder)
        for n in ("mean.nii.gz", "std.nii.gz")
    )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()):
        raise CheckpointError("geometry/mean.nii.gz and std.nii.gz must be finite, and std >= 0")
    inv_std = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    cut = (cut_cubes(a, encoder.cube, encoder.pad)[active] for a in (mean, inv_std))
    mean, inv_std = cut
    return active, mean, inv_std


def _read_volume(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(nib.load(path).dataobj)  # pyright: ignore
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as exc:
        raise CheckpointError(f"cannot read {path}: {exc}") from exc


def _on_grid(name: str, array: NDArray[Any], encoder: ViT3DConfig) -> NDArray[Any]:
    if array.shape != encoder.grid:
        raise CheckpointError(
            f"{name} has shape {array.shape}; expected the model grid {encoder.grid}"
        )
    return array
