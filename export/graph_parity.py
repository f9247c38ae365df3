"""A graph's answers on the CPU, and how far a rewritten one's are from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .parity import ParityError, distance

RELATIVE = {"fp32": 1e-5, "fp16": 5e-3, "int8": 5e-3}
"""Largest distance from the plain graph, by the precision that it computes in: rounded in another
place, a number falls on the other side of a half or an eighth bit."""
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

Arrays = dict[str, NDArray[Any]]


def answers(path: Path) -> Arrays:
    """What a graph gives for normal inputs of a fixed seed, on the CPU."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        i.name: rng.standard_normal(i.shape).astype(_TYPES[i.type]) for i in session.get_inputs()
    }
    names = [output.name for output in session.get_outputs()]
    found: Any = session.run(names, feeds)
    return dict(zip(names, found, strict=True))


def moved(path: Path, plain: Arrays, precision: str, what: str, option: str) -> float:
    """How far a graph's answers are from those of the plain one, relative.

    Raises
    ------
    ParityError
        Farther than RELATIVE allows; the message begins with `what`, and names the option.
    """
    _, relative = distance(answers(path), plain)
    allowed = RELATIVE[precision]
    if relative > allowed:
        raise ParityError(
            f"{what} is {relative:.1e} from the plain graph, allowed is {allowed:.0e}; export "
            f"without {option}"
        )
    return relative
