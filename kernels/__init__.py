"""From a volume to the tokens of an encoder, in one pass."""

from .geometry import Geometry, resize_matrix
from .resample import resample_patchify

__all__ = ["Geometry", "resample_patchify", "resize_matrix"]
