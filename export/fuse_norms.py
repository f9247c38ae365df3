"""`--fuse-norms`: graphs with group normalisation as one operator, for ONNX Runtime on a GPU alone.

ONNX Runtime's CPU provider does not have the operator (`group_norm_operator.py`), so such a bundle
runs on a GPU only. That the operator means what it replaces is checked on the CPU, with standard
operators in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx

from ..runtime.errors import InputError
from .group_norm_operator import fuse_group_norm_file
from .group_norm_parts import in_parts
from .rewriting import Arrays, moved, rewrite_graphs

GRAPHS = ("unet.onnx", "vae_decoder.onnx", "preview_decoder.onnx")
"""The graphs of the picture stage; the others have layer normalisations."""


def check_fusing_norms(targets: Sequence[str]) -> None:
    """InputError where something else than ONNX Runtime's CUDA provider is to run the graphs."""
    others = [target for target in targets if target != "cuda"]
    if others or not targets:
        raise InputError(
            f"'fuse_norms' makes graphs that only ONNX Runtime on a GPU can run, and the targets "
            f"hold {', '.join(others) or 'nothing'}; say --targets cuda"
        )


def fuse_norm_graphs(folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Group normalisation of a bundle's graphs as one operator each; as `rewrite_graphs` has it."""
    paths = [folder / name for name in GRAPHS]
    return rewrite_graphs(paths, "normalisations", fuse_group_norm_file, _checked, progress)


def _checked(path: Path, plain: Arrays) -> float:
    """How far the graph's answers are from the plain ones, taken in standard operators."""
    standing_in = path.with_name(f"{path.stem}.parts.onnx")  # beside it, where its weights lie
    onnx.save(in_parts(onnx.load(path, load_external_data=False)), standing_in)
    try:
        return moved(standing_in, plain, f"{path.name} with group normalisation", "--fuse-norms")
    finally:
        standing_in.unlink()
