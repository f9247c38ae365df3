"""A product's bias and the residual behind it as one operator: com.microsoft.BiasAdd.

Where a layer's product ends in a residual sum that no normalisation follows at once, its bias and
the residual are two kernels more that read and write everything again. ONNX Runtime's CUDA provider
has one for both; no other provider that scanside uses knows it, the CPU's neither: `in_parts` puts
standard operators in its place, for comparisons.

A transformer of the U-Net ends with rows that are made an image again and added to one. There the
image is read as rows instead, so that the operator stands before the transposition: ONNX Runtime
joins that one with those around a convolution where it runs convolutions with channels innermost.

What the operator takes, by its source (contrib_ops/cuda/diffusion/bias_add* of ONNX Runtime):
(batch, rows, columns) in float32 or float16 with as many columns as `COLUMNS` has, a bias of one
number a column, and a residual as large as the first. It adds the bias first, and rounds after each
sum, as the parts do.

Not yet measured on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .graph_index import DOMAIN, GraphIndex, LeftError, Shape, Told, fuse_file, rewrite
from .skip_group_norm_operator import INNERMOST, OUTERMOST, biased_rows, innermost, permutes

OPERATOR = "BiasAdd"
COLUMNS = (320, 640, 1280)
"""Widths that the kernel takes in every version; that of onnxruntime 1.31 takes any."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def fuse_bias_residuals_file(path: Path) -> Told:
    """Rewrite an `.onnx` file in place, as `fuse_file` does."""
    return fuse_file(path, lambda model, _: fuse_bias_residuals(model))


def fuse_bias_residuals(model: ModelProto) -> Told:
    """Replace every residual sum of a value with a bias of its own, in place.

    To be run after `fuse_skip_norms` and `fuse_skip_group_norms`, which take bias and residual in
    front of a normalisation.

    Parameters
    ----------
    model : ModelProto
        Static shapes, float32 or float16; not changed where nothing is replaced.

    Returns
    -------
    told : Told
        How many were replaced, and why other sums of a biased value were not; sums without one are
        not counted.
    """
    graph, told = GraphIndex(model), Told(OPERATOR)
    replaced: dict[int, list[NodeProto]] = {}
    for total in [node for node in model.graph.node if node.op_type == "Add"]:
        name = f"bias_residual_{told.fused}"
        try:
            nodes = _of_rows(graph, total, name) or _of_image(model, graph, total, name)
        except LeftError as why:
            told.left[str(why)] += 1
            continue
        if nodes:
            replaced[id(total)] = nodes
            told.fused += 1
    if told.fused:
        rewrite(model, replaced)
    return told


def _of_rows(graph: GraphIndex, total: NodeProto, name: str) -> list[NodeProto]:
    """What stands in place of a sum of (batch, rows, columns); nothing where it has no bias."""
    first, second = total.input
    sizes = graph.shape(total.output[0])
    if first == second or len(sizes) != 3 or graph.shape(first) != graph.shape(second):
        return []
    for side, other in ((first, second), (second, first)):
        biased = graph.biased(side)
        if biased:
            graph.only_user(side)
            _check(graph, total, sizes[2])
            inputs = [*biased, other]
            return [helper.make_node(OPERATOR, inputs, list(total.output), name, domain=DOMAIN)]
    return []


def _of_image(model: ModelProto, graph: GraphIndex, total: NodeProto, name: str) -> list[NodeProto]:
    """The same of (batch, channels, height, width), of which one summand was rows."""
    first, second = total.input
    sizes = graph.shape(total.output[0])
    if first == second or len(sizes) != 4 or graph.shape(first) != graph.shape(second):
        return []
    for side, other in ((first, second), (second, first)):
        biased = biased_rows(graph, side)
        if not biased:
            continue
        product, bias, split = biased
        _check(graph, total, sizes[1])
        shape = graph.shape(product)
        rows, residual, summed, image = (
            f"{name}.{part}" for part in ("sizes", "rows", "summed", "image")
        )
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape), rows))
        inner, nodes = _inside(graph, other, f"{name}.residual")
        _tell(model, graph.type(side), {residual: shape, summed: shape, image: innermost(sizes)})
        end = list(total.output)
        nodes += [
            helper.make_node("Reshape", [inner, rows], [residual], residual),
            helper.make_node(OPERATOR, [product, bias, residual], [summed], name, domain=DOMAIN),
            helper.make_node("Reshape", [summed, split], [image], image),
            helper.make_node("Transpose", [image], end, f"{name}.back", perm=OUTERMOST),
        ]
        return nodes
    return []


def _inside(graph: GraphIndex, value: str, name: str) -> tuple[str, list[NodeProto]]:
    """An image with its channels innermost, as it was so before, or transposed."""
    maker = graph.maker.get(value)
    if maker is not None and permutes(maker, OUTERMOST):
        return maker.input[0], []
    node = helper.make_node("Transpose", [value], [name], f"{name}.to", perm=INNERMOST)
    return name, [node]


def _check(graph: GraphIndex, total: NodeProto, columns: int) -> None:
    if columns not in COLUMNS:
        raise LeftError(f"it has {columns} columns")
    if graph.type(total.output[0]) not in _FLOATS:
        raise LeftError("it is neither float32 nor float16")


def _tell(model: ModelProto, kind: int, shapes: dict[str, Shape]) -> None:
    """Note the shapes of new values, which inference stops at an operator that it does not know."""
    for name, shape in shapes.items():
        model.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def in_parts(model: ModelProto) -> ModelProto:
    """A copy of the model with every BiasAdd in standard operators, which the CPU can run."""
    plain = ModelProto()
    plain.CopyFrom(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == OPERATOR and node.domain == DOMAIN:
            (source, bias, residual), biased = node.input, f"{node.name}.biased"
            nodes.append(helper.make_node("Add", [source, bias], [biased]))
            nodes.append(helper.make_node("Add", [biased, residual], list(node.output)))
        else:
            nodes.append(node)
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain
