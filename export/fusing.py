"""`--fuse`: parts of a bundle's graphs as one operator each of ONNX Runtime, held against the plain
graphs.

`attention` is an operator that ONNX Runtime's CPU provider has, too. `cuda` is all that gained on a
GPU (`benchmarks/gpu_variants.py`), some of it there alone: such a bundle runs on a GPU only. That
an operator means what it replaces is checked on the CPU, with standard operators in the place of
those that it does not have. TensorRT-RTX knows none of them, and fuses by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import onnx
from onnx import ModelProto

from ..runtime.errors import InputError
from . import gelu_operator, group_norm_parts
from .attention_operator import fuse_attention_file
from .gelu_operator import fuse_gelus_file
from .graph_index import Told
from .graph_parity import answers, moved
from .group_norm_operator import fuse_group_norm_file
from .packed_attention_operator import fuse_packed_attention_file
from .skip_norm_operator import fuse_skip_norms_file
from .upsample_operator import fuse_upsamplings_file

Fuse: TypeAlias = Literal["none", "attention", "cuda"]
CHOICES: tuple[Fuse, ...] = get_args(Fuse)
GRAPHS = (
    "encoder*.onnx",
    "unet.onnx",
    "vae_decoder.onnx",
    "preview_decoder.onnx",
    "image_encoder.onnx",
)
"""The graphs that are fused: the networks of the brain, those that place concepts among them, and
those of the picture. Those of texts have masks, and run once a text."""


FUSIONS: Mapping[str, Callable[[Path], Told]] = {
    "attention": fuse_attention_file,
    "norms": fuse_group_norm_file,
    "packed": fuse_packed_attention_file,
    "gelu": fuse_gelus_file,
    "skip": fuse_skip_norms_file,
    "upsample": fuse_upsamplings_file,
}
"""What makes a part of a graph one operator, in an order in which each finds its pattern."""
IN_PARTS: tuple[Callable[[ModelProto], ModelProto], ...] = (
    group_norm_parts.in_parts,
    gelu_operator.in_parts,
)
"""What writes operators that the CPU does not have in standard ones."""


def check_fusing(fuse: str, targets: Sequence[str], precision: str) -> None:
    """InputError for a choice that there is not, or that no device could run."""
    if fuse not in CHOICES:
        raise InputError(f"'fuse' must be one of {', '.join(CHOICES)}; got {fuse!r}")
    if fuse == "attention" and "rtx" in targets:
        raise InputError(
            "'fuse' and the target rtx exclude each other: TensorRT-RTX does not take the "
            "operator, and fuses attention by itself; leave one of them out"
        )
    others = [target for target in targets if target != "cuda"]
    if fuse == "cuda" and (others or not targets):
        raise InputError(
            f"--fuse cuda makes graphs that only ONNX Runtime on a GPU can run, and the targets "
            f"hold {', '.join(others) or 'nothing'}; say --targets cuda"
        )
    if fuse == "cuda" and precision == "int8":
        raise InputError(
            "--fuse cuda is for a GPU and --precision int8 for a CPU, so no device would run such "
            "a bundle; say --precision fp16"
        )


def fuse_graphs(
    folder: Path, fuse: str, precision: str, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Fuse the graphs of a bundle that is being written; weights beside them stay.

    Parameters
    ----------
    folder : Path
    fuse : {"none", "attention", "cuda"}
    precision : {"fp32", "fp16", "int8"}
        What the graphs compute in; their inputs and outputs do not tell.
    progress : callable
        Told what became of each graph.

    Returns
    -------
    fused : dict
        For each graph what became of it by each fusion, and under `relative` how far its answers
        moved.

    Raises
    ------
    ParityError
        A graph's answers moved too far.
    """
    wanted = {"none": (), "attention": ("attention",), "cuda": tuple(FUSIONS)}[fuse]
    paths = [path for name in GRAPHS if wanted for path in sorted(folder.glob(name))]
    fused: dict[str, Any] = {}
    for path in paths:
        plain = answers(path)
        fused[path.name] = _told(path, wanted, progress)
        if any(each["fused"] for each in fused[path.name].values()):
            with _in_parts(path) as standing_in:
                what, option = f"{path.name} with fused operators", f"--fuse {fuse}"
                relative = moved(standing_in, plain, precision, what, option)
        else:
            relative = 0.0
        fused[path.name]["relative"] = relative
    return fused


def _told(path: Path, wanted: Sequence[str], progress: Callable[[str], None]) -> dict[str, Any]:
    """Fuse a graph, and say what became of it by each fusion that had something to do."""
    found = {name: FUSIONS[name](path) for name in wanted}
    found = {name: told for name, told in found.items() if told.fused or told.left}
    for name, told in found.items():
        progress(f"{name} of {path.stem}: {told}")
    return {name: told.as_dict() for name, told in found.items()}


@contextmanager
def _in_parts(path: Path) -> Generator[Path]:
    """The graph as the CPU can run it, beside it for as long as it is compared: there its weights
    lie."""
    standing_in = path.with_name(f"{path.stem}.parts.onnx")
    model = onnx.load(path, load_external_data=False)
    for in_parts in IN_PARTS:
        model = in_parts(model)
    onnx.save(model, standing_in)
    try:
        yield standing_in
    finally:
        standing_in.unlink()
