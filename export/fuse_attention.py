"""`--fuse-attention`: graphs with attention as one operator, held against what they were.

Made for ONNX Runtime's CUDA provider (`attention_operator.py` says why); its CPU provider runs such
a bundle too. TensorRT-RTX does not know the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..runtime.errors import InputError
from .attention_operator import fuse_attention_file
from .parity import ParityError, distance

GRAPHS = ("encoder.onnx", "unet.onnx")
"""The graphs that have attention without a mask; the VAE's one head is too wide to gain."""
RELATIVE = {"float32": 1e-5, "float16": 5e-3}
"""Largest distance from the plain graph, by the type of its outputs."""
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

Arrays = dict[str, NDArray[Any]]


def check_fusing(targets: Sequence[str]) -> None:
    """InputError where an engine is wanted of a graph that its builder would not take."""
    if "rtx" in targets:
        raise InputError(
            "'fuse_attention' and the target rtx exclude each other: TensorRT-RTX does not take "
            "the operator, and fuses attention by itself; leave one of them out"
        )


def fuse_graphs(folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Rewrite the graphs of a bundle that is being written.

    Parameters
    ----------
    folder : Path
        Its graphs are replaced; weights beside them stay.
    progress : callable
        Told what became of each graph.

    Returns
    -------
    fused : dict
        For each graph what became of its attentions, and how far its answers moved.

    Raises
    ------
    ParityError
        A graph's answers to seeded inputs moved too far.
    """
    fused: dict[str, Any] = {}
    for path in (folder / name for name in GRAPHS):
        if not path.is_file():
            continue
        plain = answers(path)
        found = fuse_attention_file(path)
        progress(f"attention of {path.stem}: {found}")
        what = f"{path.name} with attention"
        relative = moved(path, plain, what, "--fuse-attention") if found.fused else 0.0
        fused[path.name] = {**found.as_dict(), "relative": relative}
    return fused


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


def moved(path: Path, plain: Arrays, what: str, option: str) -> float:
    """How far a graph's answers are from those of the plain one, relative.

    Raises
    ------
    ParityError
        Farther than RELATIVE allows; the message begins with `what`, and names the option.
    """
    _, relative = distance(answers(path), plain)
    allowed = max(RELATIVE[values.dtype.name] for values in plain.values())
    if relative > allowed:
        raise ParityError(
            f"{what} as one operator is {relative:.1e} from the plain graph, allowed is "
            f"{allowed:.0e}; export without {option}"
        )
    return relative
