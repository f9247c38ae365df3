"""How well a picture agrees with the CLIP vector that was decoded from the brain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .engines.engine import Engine

Floats = NDArray[np.float32]


class PictureRanker:
    """Scores candidate pictures of one volume.

    Parameters
    ----------
    engine : Engine
        image (1, 3, H, W) in [-1, 1] -> clip (1, D): the diffusion pipeline's own image encoder.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def encode(self, image: Floats) -> Floats:
        """The CLIP vector of a picture, (1, D) float32."""
        return self._engine.run({"image": image})["clip"]

    def similarity(self, image: Floats, clip: Floats) -> float:
        """Cosine of the angle between a picture's CLIP vector and a decoded one, -1 to 1.

        Parameters
        ----------
        image : (1, 3, H, W) float32
            In [-1, 1] up to overshoot.
        clip : (1, D) float32
        """
        found = self.encode(image)[0].astype(np.float64)
        wanted = clip[0].astype(np.float64)
        norm = float(np.linalg.norm(found) * np.linalg.norm(wanted))
        return float(found @ wanted) / norm if norm > 0 else 0.0
