"""Pictures of a run as they stand in its page: small, and inside it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

_EDGE = 256
"""Pixels of the longer edge, at most; hundreds of pictures stand in one page."""
_MOST_BYTES = 64 << 20


def inside(folder: Path, name: str | None) -> str | None:
    """A picture as an address that holds it; None if it is not there, or is no picture.

    Parameters
    ----------
    folder : Path
        Of the run; a name that leads out of it is not followed.
    name : str or None
        Its path in there.
    """
    path = folder / name if name else None
    if path is None or not path.resolve().is_relative_to(folder.resolve()):
        return None
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        with Image.open(path, formats=["PNG"]) as picture:
            return address(picture)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def address(picture: Image.Image) -> str:
    """A picture as an address that holds it, without what its file says besides the pixels."""
    small = picture.convert("RGB")
    large = max(small.size) > _EDGE
    small.thumbnail((_EDGE, _EDGE))
    out = io.BytesIO()
    # a small one is kept to the pixel, a large one to the eye
    small.save(out, "JPEG" if large else "PNG", **({"quality": 85} if large else {}))
    kind = "jpeg" if large else "png"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
