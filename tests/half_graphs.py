"""The reference bundle's graphs in half precision, made from those it ships; imported by tests."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from scanside.export.half_precision import plan_half, to_half
from scanside.export.ranges import largest_values
from scanside.runtime.bundle import Bundle
from scanside.runtime.engines.onnx_cpu import OnnxEngine
from scanside.runtime.pictures import open_pictures
from scanside.runtime.reconstruction import Condition

STAGES = {"encoder": "encoder.onnx", "unet": "unet.onnx", "vae_decoder": "vae_decoder.onnx"}
Feed = Mapping[str, np.ndarray[Any, Any]]


class Overheard:
    """An engine that keeps what it was given."""

    def __init__(self, stage: str, path: Path) -> None:
        self._engine = OnnxEngine(stage, path, 1)
        self.fed: list[Feed] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, feeds: Feed) -> dict[str, np.ndarray[Any, Any]]:
        self.fed.append({name: np.array(values) for name, values in feeds.items()})
        return self._engine.run(feeds)


def real_inputs(bundle: Bundle) -> dict[str, list[Feed]]:
    """What each stage is given while the golden volume is decoded to a picture."""
    golden = np.load(bundle.root / "golden" / "outputs.npz")
    spec = bundle.manifest.diffusion
    assert spec is not None
    engines: dict[str, Overheard] = {}

    def open_engine(stage: str, file: str) -> Overheard:
        engines[stage] = Overheard(stage, bundle.path(file))
        return engines[stage]

    pictures = open_pictures(bundle, spec, open_engine, {})
    states, _ = pictures.prompt.encode("a large red circle")
    condition = Condition(clip=golden["clip"], latent=golden["latent"], states=states)
    latent = pictures.reconstruction.denoise(condition, steps=spec.steps, seed=0)
    pictures.reconstruction.decode(latent)
    heard = {stage: engines[stage].fed for stage in ("unet", "vae_decoder")}
    return {"encoder": [{"tokens": golden["tokens"]}], **heard}


def half_graphs(folder: Path) -> Path:
    """Encoder, U-Net and VAE decoder of the reference bundle as fp16 export would write them."""
    bundle = Bundle.open("reference")
    inputs = real_inputs(bundle)
    for file in (*STAGES.values(), "encoder_shared.data"):
        shutil.copyfile(bundle.path(file), folder / file)
    for stage, file in STAGES.items():
        model = ir.load(folder / file)
        to_half(model, plan_half(model, largest_values(folder / file, inputs[stage])))
        # weights are read from the old file while the new one is written
        ir.save(model, folder / f"half-{file}")
        (folder / f"half-{file}").replace(folder / file)
    return folder
