"""Do two contenders of a piece give the same answer? Nothing is timed before they do.

A limit here finds what is wrong, not what is rounded: how far a bundle is from PyTorch is said by
its export, and by `scanside verify`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Answers = Mapping[str, NDArray[Any]]
LARGEST_DIFFERENCE = 0.1
"""Of the encoder's outputs, of the largest value: int8 and bfloat16 lie within."""
LEAST_PSNR_DB = 25.0
"""Of pictures; float32 beside float32 is above 40."""


def difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Largest difference, of the largest value of the first."""
    return float(np.abs(one - other).max() / np.abs(one).max())


def psnr_db(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of two pictures; 99 for equal ones."""
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return 99.0 if error == 0 else min(99.0, float(10 * np.log10(255**2 / error)))


def distance(wanted: Answers, found: Answers) -> dict[str, Any]:
    """How far one answer is from another, in the terms of each part."""
    apart: dict[str, Any] = {}
    for name, value in wanted.items():
        if name not in found:
            continue
        if value.dtype.kind == "U":
            apart[f"same_{name}"] = bool(str(value) == str(found[name]))
        elif value.dtype == np.uint8:
            apart[f"{name}_psnr_db"] = round(psnr_db(value, found[name]), 1)
        elif value.ndim == 0:
            apart[f"same_number_of_{name}"] = bool(value == found[name])
        else:
            apart[f"{name}_difference"] = float(f"{difference(value, found[name]):.1e}")
    return apart


def agree(apart: Mapping[str, Any]) -> bool:
    """Whether two answers so far apart are the same one."""
    return all(
        value
        if isinstance(value, bool)
        else value >= LEAST_PSNR_DB
        if name.endswith("_db")
        else value <= LARGEST_DIFFERENCE
        for name, value in apart.items()
    )


def same_size(wanted: Answers, found: Answers) -> bool:
    """Whether two answers are of the same shapes and numbers of tokens, and finite: all that can be
    asked of random weights, which a few bits less turn into other words.
    """
    return all(
        value.shape == found[name].shape
        and (value.dtype.kind not in "f" or bool(np.isfinite(found[name]).all()))
        and (value.dtype.kind not in "i" or value.ndim > 0 or bool(value == found[name]))
        for name, value in wanted.items()
        if name in found
    )
