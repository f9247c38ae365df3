"""`scanside reference DIR [--stage S]`: make the reference world and train its checkpoint."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import NamedTuple


class Stage(NamedTuple):
    """One resumable step; done when `product` exists below the checkpoint's folder."""

    product: str
    module: str
    function: str
    does: str


STAGES = {
    "clip": Stage("concept/model.safetensors", ".clip", "train_clip", "image and text encoder"),
    "vae": Stage("diffusion/vae/config.json", ".vae", "train_vae", "picture autoencoder"),
    "unet": Stage("diffusion/model_index.json", ".unet", "train_unet", "diffusion decoder"),
    "encoder": Stage("encoder/model.safetensors", ".encoder", "train_encoder", "ViT3D"),
    "encoder_12": Stage(
        "encoder_12/model.safetensors", ".localizing", "train_encoder_12", "ViT3D that localizes"
    ),
    "encoder_10": Stage(
        "encoder_10/model.safetensors", ".localizing", "train_encoder_10", "ViT3D that localizes"
    ),
    "language": Stage("llm/dialogue.json", ".language", "train_language", "Llama"),
    "trials": Stage(
        "trials/trials.json", ".shipped", "write_trials", "held-out trials for the demo"
    ),
    "scores": Stage(
        "quality.json",
        ".scores",
        "write_scores",
        "scores of the compiled bundle on held-out trials",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb."""
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="checkpoint to write, or to go on with"
    )
    parser.add_argument(
        "--stage",
        choices=STAGES,
        help="train this stage only; the default is every stage that is not done",
    )


def run(args: argparse.Namespace) -> int:
    """Train what is missing, in order."""
    work = args.folder / ".work"
    for name, stage in STAGES.items():
        wanted = args.stage in (None, name)
        if not wanted or (args.folder / stage.product).exists():
            continue
        print(f"{name}: {stage.does}", file=sys.stderr)
        function = getattr(importlib.import_module(stage.module, __package__), stage.function)
        function(args.folder, work)
    return 0
