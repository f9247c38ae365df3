"""The whole chain as a careful user writes it with nibabel, PyTorch, transformers and diffusers.

All that is the same for every volume is done once: weights, statistics, the places of the voxels.
The prefix goes through the language model once for both texts. Each answer is handed out as soon as
it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from peer_diffusers import DiffusersPicture
from peer_torch import TorchEncoder
from peer_transformers import TransformersText
from torch.nn import functional as F

from scanside.export.checkpoint import open_checkpoint
from scanside.export.cubes import pad_widths

Floats = NDArray[np.float32]
MAPPING = "resize"


class VolumeTokens:
    """From a NIfTI file to normalised tokens, (1, N, C) float32."""

    def __init__(self, checkpoint: Path) -> None:
        opened = open_checkpoint(checkpoint)
        self.config = opened.encoder
        if self.config.mapping != MAPPING:
            raise SystemExit(f"this chain maps by {MAPPING}; got {self.config.mapping}")
        self.active = torch.from_numpy(opened.active)
        self.mean, self.inv_std = map(torch.from_numpy, (opened.mean, opened.inv_std))
        widths = pad_widths(self.config.grid, self.config.cube, self.config.pad)
        self.pad = [width for pair in reversed(widths) for width in pair]

    @torch.inference_mode()
    def __call__(self, path: Path) -> Floats:
        image: Any = nib.load(path)
        wanted = axcodes2ornt(tuple(self.config.axcodes))
        image = image.as_reoriented(ornt_transform(io_orientation(image.affine), wanted))
        data = image.get_fdata(dtype=np.float32, caching="unchanged")
        volume = torch.from_numpy(np.ascontiguousarray(data))[None, None]
        grid = F.interpolate(
            volume,
            self.config.grid,
            mode="trilinear",
            align_corners=self.config.align_corners,
        )
        padded, r = F.pad(grid, self.pad)[0, 0], self.config.cube
        x, y, z = (size // r for size in padded.shape)
        cubes = padded.reshape(x, r, y, r, z, r).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        tokens = cubes[self.active].flatten(1) * float(self.config.input["scale"])
        return ((tokens - self.mean) * self.inv_std)[None].numpy()


class Chain:
    """A checkpoint, all of it.

    Parameters
    ----------
    checkpoint, dtype, steps, compiled
        As the parts take them; transformers' `generate` is never compiled, since its cache grows.
    """

    def __init__(
        self,
        checkpoint: Path,
        dtype: torch.dtype = torch.float32,
        *,
        steps: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.tokens = VolumeTokens(checkpoint)
        self.encoder = TorchEncoder(checkpoint, dtype, compiled=compiled)
        self.language = TransformersText(checkpoint, dtype)
        self.picture = DiffusersPicture(checkpoint, dtype, steps=steps, compiled=compiled)

    def __call__(self, path: Path, seed: int = 0) -> Iterator[tuple[str, Any]]:
        """Names and answers in the order of their coming: preview, caption, prompt, image."""
        encoded = self.encoder(self.tokens(path))
        yield "preview", self.picture.preview(encoded["latent"])
        self.language.attend(encoded["prefix"][0])
        caption = self.language.text(self.language.answer("caption"))
        yield "caption", caption
        prompt = self.language.text(self.language.answer("prompt"))
        yield "prompt", prompt
        yield "image", self.picture(prompt, encoded["clip"], encoded["latent"], seed)
