"""The brain encoder in PyTorch, eager or through torch.compile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scanside.export.vit3d import ViT3D

Floats = NDArray[np.float32]


class TorchEncoder:
    """A checkpoint's ViT3D with its three heads.

    Parameters
    ----------
    checkpoint : Path
    dtype : torch.dtype
        Of weights and arithmetic.
    compiled : bool
        Let inductor generate code, which it does at the first call.
    """

    def __init__(
        self, checkpoint: Path, dtype: torch.dtype = torch.float32, *, compiled: bool = False
    ) -> None:
        self.dtype = dtype
        model = ViT3D.load(checkpoint / "encoder").to(dtype).eval()
        self.model = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def __call__(self, tokens: Floats) -> dict[str, Floats]:
        """clip (1, D), latent (1, 4, h, w), prefix (1, M, d) of tokens (1, N, C)."""
        outputs = self.model(torch.from_numpy(tokens).to(self.dtype))
        names = ("clip", "latent", "prefix")
        return {n: out.float().numpy() for n, out in zip(names, outputs, strict=True)}
