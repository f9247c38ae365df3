"""A bias and the GELU behind it as one operator: com.microsoft.BiasGelu and BiasSplitGelu.

A layer's product is followed by the sum with its bias and by the GELU, one kernel each that reads
and writes everything again. ONNX Runtime has both as one. The U-Net's feed-forward layers gate: the
biased product is split into halves, and the left one is multiplied by the GELU of the right one.
For that the CUDA provider has an operator too, which no other provider that scanside uses knows,
the CPU's neither: `in_parts` puts standard operators in its place, for comparisons.

What the gated kernel takes, by its source (contrib_ops/cuda/diffusion/bias_split_gelu* of ONNX
Runtime): (batch, rows, columns) in float32 or float16 with as many columns as `GATED_COLUMNS` has,
and a bias of one number a column. It multiplies the left half by the GELU of the right one.

With the fusions of residuals the full-size U-Net goes from 5.74 ms to 4.81 on an H200
(`benchmarks/gpu_variants.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .graph_index import DOMAIN, GraphIndex, LeftError, Told, fuse_file, rewrite

OPERATOR, GATED = "BiasGelu", "BiasSplitGelu"
GATED_COLUMNS = (2560, 5120, 10240)
"""Widths, both halves together, that the kernel has been compiled for in every version; that of
onnxruntime 1.31 takes 6144 and 12288 too."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(slots=True)
class Gelus(Told):
    """What became of the GELUs of one graph."""

    gated: int = 0
    """How many of those that were replaced multiply another half."""

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {**super(Gelus, self).as_dict(), "gated": self.gated}


def fuse_gelus_file(path: Path) -> Told:
    """Rewrite an `.onnx` file in place, as `fuse_file` does."""
    return fuse_file(path, lambda model, _: fuse_gelus(model))


def fuse_gelus(model: ModelProto) -> Gelus:
    """Replace every GELU of a biased value, and every gate of two halves of one, in place.

    Parameters
    ----------
    model : ModelProto
        Static shapes, float32 or float16; not changed where nothing is replaced.

    Returns
    -------
    told : Gelus
        How many were replaced, and why the others were not.
    """
    graph, told = GraphIndex(model), Gelus(OPERATOR)
    replaced: dict[int, list[NodeProto]] = {}
    for gelu in [node for node in model.graph.node if node.op_type == "Gelu"]:
        try:
            last, operator = _operator(graph, gelu)
        except LeftError as why:
            told.left[str(why)] += 1
            continue
        operator.name = f"gelu_{told.fused}"
        replaced[id(last)] = [operator]
        told.fused += 1
        told.gated += operator.op_type == GATED
    if told.fused:
        rewrite(model, replaced)
    return told


def _operator(graph: GraphIndex, gelu: NodeProto) -> tuple[NodeProto, NodeProto]:
    """The node whose output the operator gives, and the operator."""
    form = next((each.s for each in gelu.attribute if each.name == "approximate"), b"none")
    if form != b"none":
        raise LeftError("it is an approximation")
    if graph.type(gelu.input[0]) not in _FLOATS:
        raise LeftError("it is neither float32 nor float16")
    maker = graph.maker.get(gelu.input[0])
    split = maker if maker is not None and maker.op_type == "Split" else None
    last = gelu if split is None else _gate(graph, gelu, split)
    summed = gelu.input[0] if split is None else split.input[0]
    biased = graph.biased(summed)
    if biased is None:
        raise LeftError("its input is no sum with one number a column")
    graph.only_user(summed)
    kind = OPERATOR if split is None else GATED
    return last, helper.make_node(kind, list(biased), list(last.output), domain=DOMAIN)


def _gate(graph: GraphIndex, gelu: NodeProto, split: NodeProto) -> NodeProto:
    """The product of a left half with the GELU of the right one."""
    sizes = graph.shape(split.input[0])
    halves = [graph.shape(name) for name in split.output]
    if len(sizes) != 3 or halves != [(*sizes[:2], sizes[2] // 2)] * 2 or sizes[2] % 2:
        raise LeftError("its input is not half of (batch, rows, columns)")
    if sizes[2] not in GATED_COLUMNS:
        raise LeftError(f"its gate has {sizes[2]} columns")
    left, right = split.output
    if gelu.input[0] != right:
        raise LeftError("its gate is the left half")
    graph.only_user(right)
    product = graph.only_user(left)
    if product.op_type != "Mul" or set(product.input) != {left, gelu.output[0]}:
        raise LeftError("the left half is not multiplied by it")
    graph.only_user(gelu.output[0])
    return product


def in_parts(model: ModelProto) -> ModelProto:
    """A copy of the model with every BiasSplitGelu in standard operators, which the CPU can run.

    They follow the kernel and not the exporter: the sum is rounded to the graph's precision, all
    that comes after is float32, and the GELU is written out with the error function.
    """
    plain = ModelProto()
    plain.CopyFrom(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        gated = node.op_type == GATED and node.domain == DOMAIN
        nodes += _parts(plain, node) if gated else [node]
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain


def _parts(model: ModelProto, node: NodeProto) -> list[NodeProto]:
    source, bias = node.input
    made: list[NodeProto] = []

    def constant(part: str, value: float) -> str:
        values = np.array(value, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, f"{node.name}.{part}"))
        return f"{node.name}.{part}"

    def add(op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"{node.name}.part{len(made)}.{number}" for number in range(outputs)]
        made.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    (summed,) = add("Add", source, bias)
    (wide,) = add("Cast", summed, to=TensorProto.FLOAT)
    left, right = add("Split", wide, outputs=2, axis=-1, num_outputs=2)
    (scaled,) = add("Div", right, constant("root", 2**0.5))
    (error,) = add("Erf", scaled)
    (share,) = add("Add", error, constant("one", 1.0))
    (half,) = add("Mul", right, constant("half", 0.5))
    (gelu,) = add("Mul", half, share)
    (gated,) = add("Mul", left, gelu)
    made.append(helper.make_node("CastLike", [gated, source], list(node.output)))
    return made
