"""Pictures as PNG files that say where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_png(path: Path, pixels: NDArray[np.uint8], provenance: Mapping[str, object]) -> None:
    """Write a picture with its provenance as PNG text fields.

    Parameters
    ----------
    path : Path
    pixels : (H, W, 3) uint8
        RGB.
    provenance : mapping
        What it was made from; each entry becomes a text field `scanside:<key>`.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", "scanside")
    for key, value in provenance.items():
        info.add_itxt(f"scanside:{key}", str(value))
    Image.fromarray(pixels).save(path, "PNG", pnginfo=info)
