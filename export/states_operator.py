"""The prompt's states in parts that are split at once: Split instead of a Slice for every part.

The U-Net reads keys and values of all its cross-attentions from one input, side by side: a Slice
along the last axis for each of them, and a kernel for each Slice. One Split gives as many parts in
one kernel where they are equally wide. Where widths differ along the axis, every run of equal ones
is sliced once and split.

One Split of unequal parts would do it, too: for that, ONNX Runtime's CUDA provider (split.cc)
copies sizes and addresses from the host's memory at every run. Work that is captured would read
them there again whenever it is replayed, when they may be gone; with equal parts, 32 at most, they
are arguments of the kernel.

Not yet measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from .graph_index import GraphIndex, LeftError, Told, fuse_file, rewrite

OPERATOR = "Split"
MOST = 32
"""Parts whose addresses are arguments of the CUDA provider's kernel."""


@dataclass(frozen=True, slots=True)
class _Part:
    """From `start` to `stop` along the last axis, as a Slice gives it."""

    node: NodeProto
    start: int
    stop: int


def fuse_states_file(path: Path) -> Told:
    """Rewrite an `.onnx` file in place, as `fuse_file` does."""
    return fuse_file(path, fuse_states)


def fuse_states(model: ModelProto, folder: Path | None = None) -> Told:
    """Replace the Slices that together are one value, from its first column to its last, in place.

    Parameters
    ----------
    model : ModelProto
        Static shapes; not changed where nothing is replaced.
    folder : Path, optional
        Where constants lie that are not in the model itself.

    Returns
    -------
    told : Told
        How many Slices were replaced, and why the others were not.
    """
    graph, told = GraphIndex(model, folder), Told(OPERATOR, domain="")
    slices: dict[str, list[NodeProto]] = {}
    for node in [node for node in model.graph.node if node.op_type == "Slice"]:
        slices.setdefault(node.input[0], []).append(node)
    replaced: dict[int, list[NodeProto]] = {}
    for source, nodes in slices.items():
        try:
            runs = _runs(graph, source, nodes)
        except LeftError as why:
            told.left[str(why)] += len(nodes)
            continue
        # all of them where the first Slice was, before anything reads one
        replaced.update({id(node): [] for node in nodes})
        replaced[id(nodes[0])] = _splits(model, graph, source, runs, f"states_{len(replaced)}")
        told.fused += len(nodes)
    if told.fused:
        rewrite(model, replaced)
    return told


def _runs(graph: GraphIndex, source: str, nodes: list[NodeProto]) -> list[list[_Part]]:
    """The parts of a value in the order of its columns, those of one width that follow each other
    together."""
    sizes = graph.shape(source)
    if not sizes:
        raise LeftError("its input's shape is not known")
    parts = sorted((_part(graph, node, sizes) for node in nodes), key=lambda part: part.start)
    ends = [0, *(part.stop for part in parts)]
    if [part.start for part in parts] != ends[:-1] or ends[-1] != sizes[-1]:
        raise LeftError("the slices of its input do not cover it once")
    runs = [list(run) for _, run in groupby(parts, key=lambda part: part.stop - part.start)]
    runs = [run[at : at + MOST] for run in runs for at in range(0, len(run), MOST)]
    if all(len(run) == 1 for run in runs):
        raise LeftError("no two slices of one width follow each other")
    return runs


def _part(graph: GraphIndex, node: NodeProto, sizes: tuple[int, ...]) -> _Part:
    """What a Slice takes, where that is columns next to each other."""
    start, stop, axis, step = (_number(graph, node, number) for number in range(1, 5))
    if start is None or stop is None or axis is None or (step is None and len(node.input) > 4):
        raise LeftError("it is not of one axis, from here to there")
    if axis not in (-1, len(sizes) - 1) or step not in (None, 1):
        raise LeftError("it is not of columns next to each other")
    width = sizes[-1]
    start, stop = (at + width if at < 0 else min(at, width) for at in (start, stop))
    if not 0 <= start < stop:
        raise LeftError("it is empty")
    return _Part(node, start, stop)


def _number(graph: GraphIndex, node: NodeProto, number: int) -> int | None:
    """An input that is a constant of one whole number."""
    values: Any = graph.values(node.input[number]) if number < len(node.input) else None
    return int(values.item()) if values is not None and values.size == 1 else None


def _splits(
    model: ModelProto, graph: GraphIndex, source: str, runs: list[list[_Part]], name: str
) -> list[NodeProto]:
    """One Split for each run of equal parts, of a Slice where there is more than one run."""
    made: list[NodeProto] = []
    for number, run in enumerate(runs):
        if len(run) == 1:
            made.append(run[0].node)
            continue
        whole = source
        if len(runs) > 1:
            whole, (first, last) = f"{name}.run{number}", (run[0], run[-1])
            bounds = [f"{whole}.{part}" for part in ("start", "stop", "axis")]
            for each, value in zip(bounds, (first.start, last.stop, -1), strict=True):
                model.graph.initializer.append(numpy_helper.from_array(np.array([value]), each))
            made.append(helper.make_node("Slice", [source, *bounds], [whole], name=whole))
        sizes = numpy_helper.from_array(
            np.array([part.stop - part.start for part in run]), f"{name}.sizes{number}"
        )
        model.graph.initializer.append(sizes)
        outputs = [part.node.output[0] for part in run]
        split = f"{name}.split{number}"
        made.append(helper.make_node(OPERATOR, [whole, sizes.name], outputs, name=split, axis=-1))
    return made
