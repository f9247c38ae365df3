"""`--fuse-attention`: graphs with attention as one operator, held against what they were.

Made for ONNX Runtime's CUDA provider (`attention_operator.py` says why); its CPU provider runs such
a bundle too. TensorRT-RTX does not know the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from .attention_operator import fuse_attention_file
from .rewriting import Arrays, moved, rewrite_graphs

GRAPHS = ("encoder.onnx", "unet.onnx")
"""The graphs that have attention without a mask; the VAE's one head is too wide to gain."""


def check_fusing(targets: Sequence[str]) -> None:
    """InputError where an engine is wanted of a graph that its builder would not take."""
    if "rtx" in targets:
        raise InputError(
            "'fuse_attention' and the target rtx exclude each other: TensorRT-RTX does not take "
            "the operator, and fuses attention by itself; leave one of them out"
        )


def fuse_graphs(folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Attention of a bundle's graphs as one operator each; as `rewrite_graphs` has it."""
    paths = [folder / name for name in GRAPHS]
    return rewrite_graphs(paths, "attention", fuse_attention_file, _checked, progress)


def _checked(path: Path, plain: Arrays) -> float:
    return moved(path, plain, f"{path.name} with attention", "--fuse-attention")
