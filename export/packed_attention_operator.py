"""Self-attention with its projections as one operator: com.microsoft.Attention.

Where query, key and value are projections of one value, three products and three sums with a bias
stand before com.microsoft.MultiHeadAttention. This operator takes the value itself, with the three
weights side by side: ONNX Runtime's CUDA provider then runs one wide product, one kernel that adds
the bias and parts the heads, and the attention. The CPU provider runs the operator too.

Scale and layout are those of MultiHeadAttention, by onnxruntime's docs/ContribOperators.md: the
output is (batch, rows, heads x width), and scores are multiplied by `scale` where it is given, else
by 1 / sqrt(width of a head).

The merged weights become part of the model; in a file of weights beside it, what they are made of
stays behind, unread.

With the fusions of GELU and residuals the full-size encoder goes from 1.15 ms to 0.73 on an H200
(`benchmarks/gpu_variants.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .attention_operator import OPERATOR as UNPACKED
from .graph_index import DOMAIN, GraphIndex, LeftError, Told, fuse_file, rewrite

OPERATOR = "Attention"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_CARRIED = ("num_heads", "scale")


@dataclass(frozen=True, slots=True)
class _Projection:
    """The (rows, width) values that a product and a bias make of a source, by name."""

    source: str
    weights: str
    bias: str


def fuse_packed_attention_file(path: Path) -> Told:
    """Rewrite an `.onnx` file in place, as `fuse_file` does."""
    return fuse_file(path, fuse_packed_attention)


def fuse_packed_attention(model: ModelProto, folder: Path | None = None) -> Told:
    """Take the projections into every self-attention that is one operator already, in place.

    Parameters
    ----------
    model : ModelProto
        Static shapes, float32 or float16, attention as `fuse_attention` makes it; not changed where
        nothing is replaced.
    folder : Path, optional
        Where weights lie that are not in the model itself.

    Returns
    -------
    told : Told
        How many were replaced, and why the other attentions were not.
    """
    graph, told = GraphIndex(model, folder), Told(OPERATOR)
    replaced: dict[int, list[NodeProto]] = {}
    for attention in [node for node in model.graph.node if node.op_type == UNPACKED]:
        try:
            source, weights, bias = _packed(graph, attention)
        except LeftError as why:
            told.left[str(why)] += 1
            continue
        name = f"packed_attention_{told.fused}"
        inputs = [source, f"{name}.weights", f"{name}.bias"]
        for each, values in zip(inputs[1:], (weights, bias), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(values, each))
        operator = helper.make_node(
            OPERATOR, inputs, list(attention.output), name=name, domain=DOMAIN
        )
        operator.attribute.extend(attention.attribute)
        replaced[id(attention)] = [operator]
        told.fused += 1
    if told.fused:
        rewrite(model, replaced)
    return told


def _packed(graph: GraphIndex, attention: NodeProto) -> tuple[str, NDArray[Any], NDArray[Any]]:
    """What query, key and value are projections of, their weights side by side, their biases."""
    names = list(attention.input)
    if len(names) < 3 or not all(names[:3]) or any(names[3:]):
        raise LeftError("it reads something else than query, key and value")
    if any(each.name not in _CARRIED for each in attention.attribute):
        raise LeftError("it has a mask or a form of its own")
    if any(attention.output[1:]):
        raise LeftError("it gives keys and values out")
    made = [_projection(graph, name) for name in names[:3]]
    if len({each.source for each in made}) != 1:
        raise LeftError("query, key and value are not projections of one value")
    shapes = {graph.shape(each.weights) for each in made}
    if len(shapes) != 1:
        raise LeftError("query, key and value are not of one width")
    weights = [_values(graph, each.weights) for each in made]
    biases = [_values(graph, each.bias) for each in made]
    return made[0].source, np.concatenate(weights, axis=1), np.concatenate(biases)


def _projection(graph: GraphIndex, name: str) -> _Projection:
    """How a value is made of a source, where nothing else reads it or its product."""
    biased = graph.biased(name)
    if biased is None:
        raise LeftError("a projection has no bias")
    product = graph.maker.get(biased[0])
    if product is None or product.op_type != "MatMul":
        raise LeftError("a projection is no product with constant weights")
    graph.only_user(name)
    graph.only_user(biased[0])
    source, weights = product.input
    if not graph.is_weight(weights) or len(graph.shape(weights)) != 2:
        raise LeftError("a projection is no product with constant weights")
    if len(graph.shape(source)) != 3:
        raise LeftError("its input is not (batch, rows, width)")
    if graph.type(source) not in _FLOATS or graph.type(weights) != graph.type(source):
        raise LeftError("it is neither float32 nor float16 throughout")
    return _Projection(source, weights, biased[1])


def _values(graph: GraphIndex, name: str) -> NDArray[Any]:
    values = graph.values(name)
    if values is None:
        raise LeftError("its weights are not at hand")
    return values
