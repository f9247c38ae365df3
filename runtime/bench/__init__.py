"""Latency, memory and size of a bundle, measured so that a figure can be held against another one.

`plan.py` says what is measured, `warm.py` and `cold.py` measure it, `summary.py` and `ratios.py`
say what can be concluded, `comparison.py` holds a run against an older one.
"""

from .load import Neighbours
from .ratios import Noise, Ratio, compared, noise_of
from .summary import summarise_ms
from .surroundings import surroundings

__all__ = [
    "Neighbours",
    "Noise",
    "Ratio",
    "compared",
    "noise_of",
    "summarise_ms",
    "surroundings",
]
