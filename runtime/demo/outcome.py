"""What the demo shows of one trial: the truth, the answers, and how far they are apart."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .captions import Comparison
from .slices import Brain
from .trials import Trial

_STAGES = {
    "load": "read the volume",
    "preprocess": "preprocess",
    "encode": "encode",
    "preview": "preview",
    "language": "text",
    "diffusion": "diffusion",
    "vae": "image decoder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One decoded trial."""

    trial: Trial
    brain: Brain
    scene: NDArray[np.uint8]
    """(H, W, 3) the scene that was shown."""
    preview: NDArray[np.uint8]
    """(H, W, 3) the predicted latent, decoded."""
    image: NDArray[np.uint8]
    """(H, W, 3) the reconstruction after the diffusion stage."""
    caption: Comparison
    prompt: str
    """The text that conditioned the image, empty if none did."""
    provenance: dict[str, dict[str, object]] = field(default_factory=dict[str, dict[str, object]])
    """What `image` and `preview` were made from."""
    latency_ms: dict[str, float]
    """Stage to milliseconds, `total` among them."""

    @property
    def preview_correlation(self) -> float:
        """Pixel correlation of preview and scene."""
        return correlation(self.preview, self.scene)

    @property
    def image_correlation(self) -> float:
        """Pixel correlation of image and scene."""
        return correlation(self.image, self.scene)

    @property
    def stages(self) -> list[tuple[str, float]]:
        """Name and milliseconds of each stage, in the order in which they run."""
        return [
            (name, self.latency_ms[key]) for key, name in _STAGES.items() if key in self.latency_ms
        ]

    @property
    def total_ms(self) -> float:
        """Milliseconds from the volume's arrival to the last answer."""
        return self.latency_ms["total"]


def correlation(picture: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Pearson correlation over pixels and channels; the truth is brought to the picture's size."""
    height, width = picture.shape[:2]
    same_size = Image.fromarray(truth).resize((width, height), Image.Resampling.BILINEAR)
    a, b = (np.asarray(p, np.float64).ravel() for p in (picture, same_size))
    a, b = a - a.mean(), b - b.mean()
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm else 0.0
