"""The golden run of a bundle: one volume through the PyTorch chain, every stage's output kept.

`verify` compares a machine's own answers with these.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from ..runtime.errors import CheckpointError
from .checkpoint import Checkpoint
from .compile_graph import Precision
from .torch_chain import TorchChain
from .torch_tokens import volume_tokens

Float = NDArray[np.float32]

PROMPT = "a red circle left of a blue square"
SEED = 0

TOLERANCE = {
    "tokens": 1e-4,
    "clip": 1e-3,
    "latent": 1e-3,
    "prefix": 1e-3,
    "preview": 1e-3,
    "tiny_preview": 1e-3,
    "states": 1e-3,
    "image_latent": 1e-2,
    "image": 1e-2,
    "image_clip": 1e-3,
    "hidden": 1e-3,
    "concept": 1e-3,
    "relevance": 1e-3,
    "similarity": 1e-3,
}
"""Largest difference that `verify` accepts, relative to the largest absolute golden value.

The picture's is wider: every denoising step adds its own rounding."""
_HALF = {
    "clip": 1e-2,
    "latent": 1e-2,
    "prefix": 1e-2,
    "hidden": 1e-2,
    "preview": 1e-2,
    "tiny_preview": 1e-2,
    "image_latent": 5e-2,
    "image": 5e-2,
}
"""What half precision makes of them, by `compile_graph.RELATIVE_FP16`."""
_EIGHT_BITS = {
    "clip": 1e-1,
    "latent": 1e-1,
    "prefix": 1e-1,
    "hidden": 1e-1,
    "preview": 1e-1,
    "tiny_preview": 1e-1,
    "image_latent": 2e-1,
    "image": 2e-1,
}
"""The same for 8 bits, by `compile_graph.RELATIVE_INT8`."""
_LOOSER: dict[Precision, dict[str, float]] = {"fp32": {}, "fp16": _HALF, "int8": _EIGHT_BITS}
_BEHIND: dict[Precision, dict[str, float]] = {
    "fp32": {},
    "fp16": {"relevance": 1e-2, "similarity": 1e-2},
    "int8": {"relevance": 2e-1, "similarity": 1e-1},
}
"""Of localizers behind encoders that only localize. Localizers are float32 in every bundle, and
that of the encoder that decodes gets golden hidden states; but the others' come from their own
encoders, in the bundle's precision. Two to four times what the reference encoders show."""


def golden_volume(checkpoint: Checkpoint, path: Path) -> nib.Nifti1Image:
    """The checkpoint's own golden volume, or a seeded one, copied to `path`.

    The seeded volume is smooth noise with the mean and spread of the training volumes, stored
    right-anterior-superior as scanners' files usually are, so that reading it exercises the axis
    permutation; under the mapping "resize" it also has a shape of its own.

    Parameters
    ----------
    checkpoint : Checkpoint
    path : Path
        A `.nii.gz`, written.
    """
    source = checkpoint.golden_volume
    if source is None:
        nib.save(_seeded_volume(checkpoint), path)
    else:
        path.write_bytes(source.read_bytes())
    try:
        return nib.Nifti1Image.from_filename(path)
    except (OSError, EOFError, ValueError, ImageFileError) as exc:
        raise CheckpointError(f"cannot read golden/volume.nii.gz of the checkpoint: {exc}") from exc


def _seeded_volume(checkpoint: Checkpoint) -> nib.Nifti1Image:
    config = checkpoint.encoder
    rng = np.random.default_rng(SEED)
    coarse = rng.standard_normal([max(2, s // 4) for s in config.grid])
    shape = config.grid
    if config.mapping == "resize":
        shape = tuple(s + d for s, d in zip(shape, (1, -2, 2), strict=True))
    smooth = F.interpolate(torch.from_numpy(coarse)[None, None], shape, mode="trilinear")[0, 0]
    data = (smooth.numpy() + 0.3 * rng.standard_normal(shape)) / float(config.input["scale"])
    turn = ornt_transform(axcodes2ornt(tuple(config.axcodes)), axcodes2ornt("RAS"))
    affine = np.array(config.affine) @ inv_ornt_aff(turn, shape)
    return nib.Nifti1Image(apply_orientation(data, turn).astype(np.float32), affine)


def encode_golden(chain: TorchChain, image: nib.Nifti1Image) -> dict[str, Float]:
    """Tokens and the encoder's three outputs, batch of one."""
    tokens = _rounded(volume_tokens(image, chain.checkpoint))
    clip, latent, prefix = chain.encode(tokens)
    return {"tokens": tokens, "clip": clip, "latent": latent, "prefix": prefix}


def _rounded(tokens: Float) -> Float:
    """Tokens in steps of at most half their tolerance, which pack into two thirds of the bytes."""
    step = TOLERANCE["tokens"] * float(np.abs(tokens).max()) / 2
    step = 2.0 ** np.floor(np.log2(max(step, float(np.finfo(np.float32).tiny))))
    return (np.round(tokens / step) * step).astype(np.float32)


def picture_golden(
    chain: TorchChain, encoded: dict[str, Float], steps: int, schedule: str
) -> dict[str, Float]:
    """Preview, keys and values of the fixed prompt, denoised latent and picture; with a tiny
    decoder its preview, with an image encoder the picture's CLIP vector.
    """
    diffusion = chain.diffusion
    clean, image = chain.image(
        encoded["clip"], encoded["latent"], [PROMPT], SEED, steps=steps, schedule=schedule
    )
    golden = {
        "preview": chain.decode(encoded["latent"]),
        "states": diffusion.keys_values([PROMPT]),
        "image_latent": clean,
        "image": image,
    }
    diffusion.release("unet")
    height, width = image.shape[2:]
    optional: dict[str, tuple[nn.Module | None, Float]] = {
        "tiny_preview": (diffusion.tiny_decoder(), encoded["latent"]),
        "image_clip": (diffusion.picture_encoder((height, width)), image),
    }
    for name, (module, given) in optional.items():
        if module is not None:
            with torch.inference_mode():
                golden[name] = module(torch.from_numpy(given)).numpy()
    diffusion.release("image_encoder")
    return golden


def golden_entry(
    texts: dict[str, str],
    steps: int,
    schedule: str,
    precision: Precision,
    outputs: Iterable[str] = (),
) -> dict[str, Any]:
    """The manifest's `golden` section.

    Parameters
    ----------
    texts : dict
        Answers by task.
    outputs : iterable of str
        Names of all golden outputs; relevance_12, for example, gets a tolerance of its own.
    """
    behind = {
        name: _BEHIND[precision][kind]
        for name, kind in ((name, name.partition("_")[0]) for name in outputs)
        if name != kind and kind in _BEHIND[precision]
    }
    return {
        "volume": "golden/volume.nii.gz",
        "outputs": "golden/outputs.npz",
        **texts,
        "image_prompt": PROMPT,
        "seed": SEED,
        "steps": steps,
        "schedule": schedule,
        "tolerance": TOLERANCE | _LOOSER[precision] | behind,
    }
