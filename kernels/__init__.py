"""From a volume to the tokens of an encoder, in one pass."""

from .geometry import Geometry, resize_matrix
from .resample import Resampler, resample_patchify
from .sample import sample_gradient, sample_volume

__all__ = [
    "Geometry",
    "Resampler",
    "resample_patchify",
    "resize_matrix",
    "sample_gradient",
    "sample_volume",
]
