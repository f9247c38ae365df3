"""Attention as one operator: com.microsoft.MultiHeadAttention, for ONNX Runtime's CUDA provider.

The exporter writes attention in the parts that every backend accepts: two products, a softmax, and
a dozen reshapes, transpositions and scalings around them. ONNX Runtime has fused kernels for the
whole, but does not recognise these parts by itself. On an H200 the full-size U-Net takes 6.56 ms
with the operator and 8.21 ms without (`benchmarks/gpu_variants.py`). ONNX Runtime's CPU provider
runs the operator too; TensorRT's parsers do not know it.

What is replaced computes the same: whether reshapes and transpositions bring the heads where the
operator has them is found out by moving an array of indices through them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from .graph_index import DOMAIN, GraphIndex, LeftError, Shape, Told, fuse_file, rewrite

OPERATOR = "MultiHeadAttention"
WIDEST_HEAD = 256
"""Wider heads stay parts: the VAE, whose one head has 512, gained nothing by the operator."""


def fuse_attention_file(path: Path) -> Told:
    """Rewrite an `.onnx` file in place, as `fuse_file` does."""
    return fuse_file(path, lambda model, _: fuse_attention(model))


def fuse_attention(model: ModelProto, widest_head: int = WIDEST_HEAD) -> Told:
    """Replace every attention without a mask, in place.

    Parameters
    ----------
    model : ModelProto
        Static shapes, float32 or float16; not changed where nothing is replaced.
    widest_head : int
        Attentions with wider heads are left alone.

    Returns
    -------
    found : Told
        How many were replaced, and why the others were not.
    """
    graph, found = GraphIndex(model), Told(OPERATOR)
    replaced: dict[int, list[NodeProto]] = {}
    for softmax in [node for node in model.graph.node if node.op_type == "Softmax"]:
        try:
            last, operator = _operator(graph, softmax, widest_head)
        except LeftError as why:
            found.left[str(why)] += 1
            continue
        operator.name = f"attention_{found.fused}"
        replaced[id(last)] = [operator]
        found.fused += 1
    if found.fused:
        rewrite(model, replaced)
    return found


def _operator(graph: GraphIndex, softmax: NodeProto, widest: int) -> tuple[NodeProto, NodeProto]:
    """The last node of an attention, and the operator that gives its output."""
    scores, scale = _scores(graph, softmax)
    weighted = graph.only_user(softmax.output[0])
    if weighted.op_type == "Cast":
        raise LeftError("its softmax has a precision of its own")
    if weighted.op_type != "MatMul" or weighted.input[0] != softmax.output[0]:
        raise LeftError("no product follows the softmax")
    sizes = graph.shape(weighted.output[0])
    if len(sizes) != 4 or len(graph.shape(scores.output[0])) != 4:
        raise LeftError("its shape is not (batch, heads, rows, columns)")
    batch, heads, rows, width = sizes
    columns = graph.shape(scores.output[0])[3]
    own = graph.shape(scores.input[0])[-1:]
    if not own or max(*own, width) > widest:
        raise LeftError(f"a head has more than {widest} numbers")
    query, by_query = _source(graph, scores.input[0], (batch, rows, heads, *own), (0, 2, 1, 3))
    key, by_key = _source(graph, scores.input[1], (batch, columns, heads, *own), (0, 2, 3, 1))
    value, by_value = _source(
        graph, weighted.input[1], (batch, columns, heads, width), (0, 2, 1, 3)
    )
    last = _joined(graph, weighted, sizes)
    names = [query, key, value]
    if len({graph.type(name) for name in (*names, last.output[0])}) != 1 or by_value != 1:
        raise LeftError("its inputs have several precisions, or its values are scaled")
    operator = helper.make_node(
        OPERATOR,
        names,
        list(last.output),
        domain=DOMAIN,
        num_heads=heads,
        scale=scale * by_query * by_key,
    )
    return last, operator


def _scores(graph: GraphIndex, softmax: NodeProto) -> tuple[NodeProto, float]:
    """The product whose softmax is taken, and what it is multiplied by before."""
    rank = len(graph.shape(softmax.output[0]))
    axis = next((a.i for a in softmax.attribute if a.name == "axis"), -1)
    if axis not in (-1, rank - 1):
        raise LeftError("its softmax is not over the last axis")
    name, scale = softmax.input[0], 1.0
    while True:
        graph.only_user(name)
        maker = graph.maker.get(name)
        if maker is None:
            raise LeftError("its scores are an input")
        if maker.op_type == "MatMul":
            return maker, scale
        scaled = graph.scaled(maker)
        if scaled is None:
            known = {"Add": "it has a mask", "Cast": "its softmax has a precision of its own"}
            raise LeftError(known.get(maker.op_type, f"its scores come out of {maker.op_type}"))
        name, scale = scaled[0], scale * scaled[1]


def _source(
    graph: GraphIndex, name: str, split: Shape, order: tuple[int, ...]
) -> tuple[str, float]:
    """The (batch, rows, heads x width) value behind one side of a product, and its scale.

    Parameters
    ----------
    split : tuple of int
        (batch, rows, heads, width).
    order : tuple of int
        How the product wants these axes.
    """
    flat = (*split[:2], split[2] * split[3])
    indices = np.arange(np.prod(split)).reshape(flat)
    wanted = indices.reshape(split).transpose(order)
    found, scale, moves = None, 1.0, list[NodeProto]()
    while True:
        if graph.shape(name) == flat and np.array_equal(_moved(graph, indices, moves), wanted):
            found = name, scale
        maker = graph.maker.get(name)
        if maker is None:
            break
        scaled = graph.scaled(maker)
        if scaled:
            name, scale = scaled[0], scale * scaled[1]
        elif maker.op_type in ("Reshape", "Transpose"):
            moves.insert(0, maker)
            name = maker.input[0]
        else:
            break
    if found is None:
        raise LeftError("its heads do not lie side by side in one row")
    return found


def _moved(graph: GraphIndex, indices: NDArray[Any], moves: list[NodeProto]) -> NDArray[Any]:
    """Indices after reshapes and transpositions."""
    for node in moves:
        if node.op_type == "Transpose":
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            indices = indices.transpose(order)
        else:
            indices = indices.reshape(graph.shape(node.output[0]))
    return indices


def _joined(graph: GraphIndex, weighted: NodeProto, sizes: Shape) -> NodeProto:
    """The node after which the heads lie side by side again."""
    batch, heads, rows, width = sizes
    indices = np.arange(np.prod(sizes)).reshape(sizes)
    wanted = indices.transpose(0, 2, 1, 3).reshape(batch, rows, heads * width)
    node, moves = weighted, list[NodeProto]()
    while not np.array_equal(_moved(graph, indices, moves), wanted):
        node = graph.only_user(node.output[0])
        if node.op_type not in ("Reshape", "Transpose") or not graph.shape(node.output[0]):
            raise LeftError("its heads are not joined again")
        moves.append(node)
    return node
