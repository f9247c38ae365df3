"""The pipeline's image encoder as one graph, from a picture's pixels to its CLIP vector.

With it candidates are ranked: the vector of a picture is held against the one that was decoded from
the brain. What the feature extractor does before the encoder (resize, crop, normalise) is linear in
the pixels, so it is two small matrices here, and no image library is needed at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.errors import CheckpointError

_MODES = {2: "bilinear", 3: "bicubic"}
"""Pillow's resampling filters by number."""


class PictureEncoder(nn.Module):
    """Resize, crop, normalise, encode.

    Parameters
    ----------
    model : CLIPVisionModelWithProjection
    processor : mapping
        The feature extractor's configuration, `preprocessor_config.json`.
    size : (2,) int
        Height and width of the pictures.

    Raises
    ------
    CheckpointError
        The feature extractor resamples in a way that is not linear.
    """

    rows: Tensor
    columns: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, processor: Mapping[str, Any], size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        crop = processor["crop_size"]
        scale = processor["size"]["shortest_edge"] / min(size)
        mode = _MODES.get(processor.get("resample", 3))
        if mode is None:
            raise CheckpointError(
                f"diffusion/feature_extractor has resample {processor['resample']}; "
                "export knows 2 (bilinear) and 3 (bicubic)"
            )
        rows = resize_and_crop(size[0], int(size[0] * scale), crop["height"], mode)
        columns = resize_and_crop(size[1], int(size[1] * scale), crop["width"], mode)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns.T.contiguous())
        for name in ("mean", "std"):
            values = torch.tensor(processor[f"image_{name}"], dtype=torch.float32)
            self.register_buffer(name, values[None, :, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) float32 in [-1, 1] up to overshoot -> (1, D) float32."""
        pixels = (image / 2 + 0.5).clamp(0, 1)
        # overshoot is clipped after each of the two passes, as Pillow does
        narrowed = (pixels @ self.columns).clamp(0, 1)
        resized = (self.rows @ narrowed).clamp(0, 1)
        return self.model((resized - self.mean) / self.std).image_embeds


def resize_and_crop(length: int, resized: int, cropped: int, mode: str) -> Tensor:
    """One axis of a resize and a centre crop, (cropped, length) float32.

    Filters are widened when a picture shrinks, as Pillow does.
    """
    matrix = torch.eye(length)
    if resized != length:
        matrix = F.interpolate(
            matrix[None, None], (resized, length), mode=mode, antialias=True, align_corners=False
        )[0, 0]
    first = (resized - cropped) // 2
    if first < 0:
        raise CheckpointError(
            f"diffusion/feature_extractor crops {cropped} pixels out of {resized}; "
            "crop_size must not exceed size"
        )
    return matrix[first : first + cropped].contiguous()
