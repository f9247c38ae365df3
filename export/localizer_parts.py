"""Which encoders of a checkpoint localize concepts, with their cubes and statistics.

The one that decodes, and up to two more beside it that see the same volume in cubes of other sizes:
`encoder_12/` and `encoder_10/` in the paper. Without `concept/` none does, for then no text has a
vector.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..runtime.errors import CheckpointError
from .checkpoint import Checkpoint, read_geometry
from .localizer import LocalizationSettings
from .vit3d import ViT3D, ViT3DConfig

MOST_ENCODERS = 3
_FOLDER = re.compile(r"encoder_(\d+)")
UNUSED_HEADS = ("f_wv.", "f_t.")
"""Heads that localization does not need, and that such an encoder may lack."""
_SHARED = ("grid", "axcodes", "affine", "mapping", "align_corners", "clip_size", "input")
"""Fields in which all encoders of a checkpoint must agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizerPart:
    """One encoder that only localizes."""

    folder: Path
    config: ViT3DConfig
    active: NDArray[np.int64]
    """(N,) flat C-order indices of its cubes."""
    mean: NDArray[np.float32]
    """(N, C), as `Checkpoint` has it for the encoder that decodes."""
    inv_std: NDArray[np.float32]

    @property
    def name(self) -> str:
        """encoder_12, for example: what its files are called."""
        return self.folder.name

    @property
    def suffix(self) -> str:
        """_12, for example."""
        return self.folder.name.removeprefix("encoder")

    def load(self) -> ViT3D:
        """The encoder in float32; CheckpointError if weights are missing or of another size."""
        model = ViT3D(self.config)
        try:
            weights = load_file(self.folder / "model.safetensors")
            found = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
        except (OSError, RuntimeError, SafetensorError) as exc:
            reason = str(exc).strip().splitlines()[0]
            raise CheckpointError(f"cannot load checkpoint part '{self.name}/': {reason}") from exc
        missing = [name for name in found.missing_keys if not name.startswith(UNUSED_HEADS)]
        if missing or found.unexpected_keys:
            raise CheckpointError(
                f"checkpoint part '{self.name}/' is no ViT3D of its config.json: missing are "
                f"{missing[:3]}, unknown are {found.unexpected_keys[:3]}"
            )
        return model.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Localization:
    """What a checkpoint holds for concept localization."""

    settings: LocalizationSettings
    others: tuple[LocalizerPart, ...]
    """Encoders beside the one that decodes."""


def read_localization(checkpoint: Checkpoint) -> Localization | None:
    """Find and check all that localization needs; None for a checkpoint without `concept/`.

    Raises
    ------
    CheckpointError
        An encoder without a text encoder, more than three encoders, or parts that do not fit.
    """
    root = checkpoint.root
    folders = sorted(
        (p for p in root.iterdir() if p.is_dir() and _FOLDER.fullmatch(p.name)),
        key=lambda p: -int(p.name.partition("_")[2]),
    )
    if not (root / "concept").is_dir():
        if folders:
            raise CheckpointError(
                f"checkpoint {root} has {folders[0].name}/ but no concept/, the CLIP text model "
                "whose vectors say what to locate"
            )
        return None
    if len(folders) >= MOST_ENCODERS:
        raise CheckpointError(
            f"checkpoint {root} has {len(folders) + 1} encoders; a bundle holds up to "
            f"{MOST_ENCODERS}"
        )
    path = root / "concept" / "localization.json"
    settings = LocalizationSettings.from_dict(_json(path) if path.is_file() else {})
    return Localization(
        settings=settings, others=tuple(_read_part(checkpoint, folder) for folder in folders)
    )


def _read_part(checkpoint: Checkpoint, folder: Path) -> LocalizerPart:
    name = folder.name
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise CheckpointError(f"checkpoint part '{name}/' has no {file}")
    try:
        config = ViT3DConfig.from_dict(_json(folder / "config.json"))
    except TypeError as exc:
        raise CheckpointError(f"{name}/config.json: {exc}") from exc
    for field in _SHARED:
        mine, wanted = getattr(config, field), getattr(checkpoint.encoder, field)
        if mine != wanted:
            raise CheckpointError(
                f"checkpoint parts do not fit: encoder {field} is {wanted}, {name} {field} is "
                f"{mine}; maps are fused on one model grid"
            )
    if f"encoder_{config.cube}" != name:
        raise CheckpointError(
            f"checkpoint part '{name}/' has cubes of edge {config.cube}; call it "
            f"encoder_{config.cube}/"
        )
    active, mean, inv_std = read_geometry(checkpoint.root / "geometry", config)
    return LocalizerPart(folder=folder, config=config, active=active, mean=mean, inv_std=inv_std)


def _json(path: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"cannot read {path}: {exc}") from exc
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object; got {type(values).__name__}")
    return values
