"""A residual and the normalisation behind it as one operator: com.microsoft.SkipLayerNormalization.

A block ends with the sum of what came in and what the block made of it; the next one begins by
normalising that sum, and needs the sum itself again for its own residual. In parts these are a sum
with the bias of the last product, the residual sum, and the normalisation. ONNX Runtime has one
kernel for the three, on a GPU and on the CPU, which gives the residual sum out as well.

What it computes is the same: the CUDA kernel of onnxruntime 1.31 sums in float32 and rounds the
residual once, where the parts round it after each sum. Earlier versions took mean and variance in
half precision (before onnxruntime pull request 28682), which loses digits.

With the fusions of GELU the full-size U-Net goes from 5.74 ms to 4.81 on an H200
(`benchmarks/gpu_variants.py`).
"""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, helper

from .graph_index import DOMAIN, GraphIndex, LeftError, Told, fuse_file, rewrite

OPERATOR = "SkipLayerNormalization"
_EPSILON = 1e-5
"""ONNX's own default, which is not the operator's."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def fuse_skip_norms_file(path: Path) -> Told:
    """Rewrite an `.onnx` file in place, as `fuse_file` does."""
    return fuse_file(path, lambda model, _: fuse_skip_norms(model))


def fuse_skip_norms(model: ModelProto) -> Told:
    """Replace every layer normalisation of a residual sum, in place.

    Parameters
    ----------
    model : ModelProto
        Static shapes, float32 or float16; not changed where nothing is replaced.

    Returns
    -------
    told : Told
        How many were replaced, and why the other layer normalisations were not.
    """
    graph, told = GraphIndex(model), Told(OPERATOR)
    replaced: dict[int, list[NodeProto]] = {}
    for norm in [node for node in model.graph.node if node.op_type == "LayerNormalization"]:
        try:
            residual = _residual(graph, norm)
            if id(residual) in replaced:
                raise LeftError("its sum comes out of another one's operator")
            operator = _operator(graph, norm, residual)
        except LeftError as why:
            told.left[str(why)] += 1
            continue
        operator.name = f"skip_norm_{told.fused}"
        # where the sum was: others may read it before the normalisation's turn comes
        replaced[id(residual)], replaced[id(norm)] = [operator], []
        told.fused += 1
    if told.fused:
        rewrite(model, replaced)
    return told


def _residual(graph: GraphIndex, norm: NodeProto) -> NodeProto:
    """The sum of two values of (batch, rows, width) that is normalised."""
    total = norm.input[0]
    sizes, maker = graph.shape(total), graph.maker.get(total)
    if maker is None or maker.op_type != "Add":
        raise LeftError("its input is no sum")
    if len(sizes) != 3:
        raise LeftError("its input is not (batch, rows, width)")
    if any(graph.shape(name) != sizes for name in maker.input):
        raise LeftError("its input is no sum of two values of one shape")
    if graph.type(total) not in _FLOATS:
        raise LeftError("it is neither float32 nor float16")
    return maker


def _operator(graph: GraphIndex, norm: NodeProto, residual: NodeProto) -> NodeProto:
    """The operator that gives what the normalisation gives, and the sum where others need it."""
    told = {each.name: helper.get_attribute_value(each) for each in norm.attribute}
    if told.get("axis", -1) not in (-1, 2):
        raise LeftError("it is not over the last axis")
    if told.get("stash_type", TensorProto.FLOAT) != TensorProto.FLOAT:
        raise LeftError("its mean is not taken in float32")
    if any(norm.output[1:]):
        raise LeftError("its mean or deviation is read")
    total = residual.output[0]
    width, kind = graph.shape(total)[2], graph.type(total)
    weights = list(norm.input[1:])
    if len(weights) != 2 or not all(weights):
        raise LeftError("it has no shift")
    for name in weights:
        # the operator stands before the normalisation, where only weights are sure to be made
        if graph.constant(name) is None or name in graph.maker:
            raise LeftError("its scale or shift is made by another operator")
        if graph.shape(name) != (width,) or graph.type(name) != kind:
            raise LeftError("its scale or shift is not one number a column")
    elsewhere = total in graph.given or len(graph.users(total)) > 1
    return helper.make_node(
        OPERATOR,
        _summands(graph, residual, weights),
        [norm.output[0], "", "", total] if elsewhere else [norm.output[0]],
        domain=DOMAIN,
        epsilon=told.get("epsilon", _EPSILON),
    )


def _summands(graph: GraphIndex, residual: NodeProto, weights: list[str]) -> list[str]:
    """What the operator reads: the two sides, the weights, and a side's bias where it has one."""
    first, second = residual.input
    for side, other in ((first, second), (second, first)):
        biased = graph.biased(side)
        if biased and len(graph.users(side)) == 1 and side not in graph.given:
            return [biased[0], other, *weights, biased[1]]
    return [first, second, *weights]
