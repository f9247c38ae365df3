"""The reference bundle's graphs in half precision, made from those it ships; imported by tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from scanside.export.emulated import real_inputs
from scanside.export.half_precision import plan_half, to_half
from scanside.export.ranges import largest_values
from scanside.runtime.bundle import Bundle

STAGES = {"encoder": "encoder.onnx", "unet": "unet.onnx", "vae_decoder": "vae_decoder.onnx"}


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
