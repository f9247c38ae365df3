"""A bundle whose graphs round as half precision does, so that a CPU can score it.

    emulated_bundle("reference", folder)

ONNX Runtime's CPU backend computes half-precision nodes in float32, so decoding with a bundle of
precision fp16 there shows less loss than a GPU has. In this one every number that a half-precision
node takes or gives is rounded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.bundle import Bundle
from ..runtime.engines.engine import Engine
from ..runtime.engines.onnx_cpu import OnnxEngine
from ..runtime.manifest import TensorSpec
from ..runtime.pictures import open_pictures
from ..runtime.reconstruction import Condition
from ..runtime.user_cache import sha256_of
from .half_precision import emulate_half, plan_half
from .ranges import largest_values

Feed = Mapping[str, NDArray[Any]]
STAGES = ("encoder", "unet", "vae_decoder")
_PROMPT = "A large red circle on a white background."


class _Overheard:
    """An engine on the CPU that keeps what it was given."""

    provider = OnnxEngine.provider

    def __init__(self, stage: str, path: Path) -> None:
        self.stage = stage
        self._engine = OnnxEngine(stage, path, 1)
        self.inputs: dict[str, TensorSpec] = self._engine.inputs
        self.outputs: dict[str, TensorSpec] = self._engine.outputs
        self.fed: list[Feed] = []

    def run(self, feeds: Feed) -> dict[str, NDArray[Any]]:
        self.fed.append({name: np.array(values) for name, values in feeds.items()})
        return self._engine.run(feeds)

    def close(self) -> None:
        self._engine.close()


def real_inputs(bundle: Bundle) -> dict[str, Sequence[Feed]]:
    """What each graph is given while the golden volume becomes a picture.

    Parameters
    ----------
    bundle : Bundle
        With a golden volume and a picture stage.
    """
    spec, golden = bundle.manifest.diffusion, bundle.manifest.golden
    assert spec is not None, "the reference bundle has a picture stage"
    assert golden is not None, "the reference bundle has a golden volume"
    known = bundle.arrays(golden.outputs)
    engines: dict[str, _Overheard] = {}

    def open_engine(stage: str, file: str) -> Engine:
        engines[stage] = _Overheard(stage, bundle.path(file))
        return engines[stage]

    pictures = open_pictures(bundle, spec, open_engine, {})
    states, _ = pictures.prompt.encode(_PROMPT)
    condition = Condition(clip=known["clip"], latent=known["latent"], states=states)
    latent = pictures.reconstruction.denoise(condition, steps=spec.steps, seed=0)
    pictures.reconstruction.decode(latent)
    # the preview decodes the latent as it was predicted, mostly the larger one
    pictures.reconstruction.decode(known["latent"])
    heard = {stage: engines[stage].fed for stage in ("unet", "vae_decoder")}
    return {"encoder": [{"tokens": known["tokens"]}], **heard}


def emulated_bundle(source: str | Path, folder: Path) -> Path:
    """Copy a float32 bundle, with encoder, U-Net and VAE that round as half precision does.

    Parameters
    ----------
    source : str or Path
        A bundle, or "reference".
    folder : Path
        Must not exist.

    Returns
    -------
    folder : Path
    """
    bundle = Bundle.open(source)
    inputs = real_inputs(bundle)
    shutil.copytree(bundle.root, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    spec = bundle.manifest.diffusion
    assert spec is not None, "the reference bundle has a picture stage"
    files = (bundle.manifest.encoder.file, spec.unet, spec.vae_decoder)
    for stage, file in zip(STAGES, files, strict=True):
        path = folder / file
        model = ir.load(path)
        emulate_half(model, plan_half(model, largest_values(path, inputs[stage])))
        # weights are read from the old file while the new one is written
        rounded = path.with_name(f"rounded-{file}")
        ir.save(model, rounded)
        rounded.replace(path)
        size = path.stat().st_size
        manifest["files"][file] |= {"sha256": sha256_of(path), "bytes": size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
