"""A sum and the group normalisation behind it as one operator: com.microsoft.SkipGroupNorm.

A residual block of the U-Net adds the time embedding, one number a channel, in front of its second
normalisation; it ends with the sum of what came in and what it made of it, which the next block
normalises first and needs again for its own residual. In parts every sum reads and writes the whole
image once more. ONNX Runtime's CUDA provider has one operator for sum and normalisation, which
gives the sum out as well; no other provider that scanside uses knows it, the CPU's neither:
`in_parts` puts standard operators in its place, for comparisons.

What the operator takes, by its source (contrib_ops/cuda/diffusion/group_norm* of ONNX Runtime), is
what com.microsoft.GroupNorm takes, and

- a second summand as large as the first one, (batch, height, width, channels), or of one number a
  channel, (batch, channels) or (batch, 1, 1, channels);
- a bias of (channels), which is added to the first summand before.

It rounds the sum to the graph's precision before it normalises it, as the parts do.

Channels are innermost inside. Where a summand comes from that layout, the operator reads it as it
was there; else a transposition stands in front, which ONNX Runtime joins with the one behind a
convolution where it runs that with channels innermost too.

Not yet measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from . import group_norm_parts
from .graph_index import DOMAIN, GraphIndex, LeftError, Shape, Told, fuse_file, rewrite
from .group_norm_operator import OPERATOR as UNSUMMED

OPERATOR = "SkipGroupNorm"
INNERMOST, OUTERMOST = [0, 2, 3, 1], [0, 3, 1, 2]


@dataclass(frozen=True, slots=True)
class _Found:
    """A sum that is normalised, its larger summand first, and whether others read the sum."""

    total: NodeProto
    large: str
    other: str
    elsewhere: bool


@dataclass(slots=True)
class _Made:
    """The nodes in place of one sum; `known` has values in the layout of the operator, by name."""

    graph: GraphIndex
    name: str
    known: dict[str, str]
    nodes: list[NodeProto] = field(default_factory=list[NodeProto])
    shapes: dict[str, Shape] = field(default_factory=dict[str, Shape])

    def add(self, op: str, inputs: list[str], part: str, shape: Shape, **attributes: Any) -> str:
        """A node more; the name of its value."""
        output = f"{self.name}.{part}"
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=f"{self.name}.to_{part}", **attributes)
        )
        self.shapes[output] = shape
        return output

    def inside(self, value: str, part: str) -> str:
        """A value of (batch, channels, height, width) with its channels innermost."""
        if value in self.known:
            return self.known[value]
        maker = self.graph.maker.get(value)
        if maker is not None and permutes(maker, OUTERMOST):
            return maker.input[0]
        shape = innermost(self.graph.shape(value))
        return self.add("Transpose", [value], part, shape, perm=INNERMOST)


def fuse_skip_group_norms_file(path: Path) -> Told:
    """Rewrite an `.onnx` file in place, as `fuse_file` does."""
    return fuse_file(path, lambda model, _: fuse_skip_group_norms(model))


def fuse_skip_group_norms(model: ModelProto) -> Told:
    """Replace every com.microsoft.GroupNorm of a sum, in place.

    Parameters
    ----------
    model : ModelProto
        Static shapes, group normalisations as `fuse_group_norms` makes them; not changed where
        nothing is replaced.

    Returns
    -------
    told : Told
        How many were replaced, and why the other group normalisations were not.
    """
    graph, told = GraphIndex(model), Told(OPERATOR)
    replaced: dict[int, list[NodeProto]] = {}
    known: dict[str, str] = {}
    for norm in [node for node in model.graph.node if node.op_type == UNSUMMED]:
        try:
            found = _found(graph, norm)
            if id(found.total) in replaced:
                raise LeftError("its sum comes out of another one's operator")
        except LeftError as why:
            told.left[str(why)] += 1
            continue
        made = _Made(graph, f"skip_group_norm_{told.fused}", known)
        _operator(made, norm, found, _summands(made, norm, found))
        for name, shape in made.shapes.items():
            kind = graph.type(found.large)
            model.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))
        # where the sum was: others may read it before the normalisation's turn comes
        replaced[id(found.total)], replaced[id(norm)] = made.nodes, []
        told.fused += 1
    if told.fused:
        rewrite(model, replaced)
    return told


def _found(graph: GraphIndex, norm: NodeProto) -> _Found:
    """The sum of (batch, channels, height, width) that is normalised."""
    inner = graph.maker.get(norm.input[0])
    if inner is None or not permutes(inner, INNERMOST):
        raise LeftError("its input does not come from channels outermost")
    graph.only_user(norm.input[0])
    total = graph.maker.get(inner.input[0])
    if total is None or total.op_type != "Add":
        raise LeftError("its input is no sum")
    for name in norm.input[1:]:
        # the operator stands before the normalisation, where only weights are sure to be made
        if graph.constant(name) is None or name in graph.maker:
            raise LeftError("its scale or shift is made by another operator")
    (value,), (first, second) = total.output, total.input
    elsewhere = value in graph.given or len(graph.users(value)) > 1
    sizes = graph.shape(value)
    by_channel = (*sizes[:2], 1, 1)
    if graph.shape(first) == sizes and graph.shape(second) in (sizes, by_channel):
        return _Found(total, first, second, elsewhere)
    if graph.shape(second) == sizes and graph.shape(first) == by_channel:
        return _Found(total, second, first, elsewhere)
    raise LeftError("its sum is not of two values of one shape, or of one number a channel")


def _summands(made: _Made, norm: NodeProto, found: _Found) -> list[str]:
    """What the operator reads: two summands, scale and shift between them, a bias if there is one.

    Only a summand that is as large as the sum has a bias taken in.
    """
    graph, (scale, shift) = made.graph, norm.input[1:]
    large, other = found.large, found.other
    if graph.shape(large) != graph.shape(other):
        maker = graph.maker.get(other)
        if maker is not None and maker.op_type in ("Unsqueeze", "Reshape"):
            flat = maker.input[0]
            if graph.shape(flat) == graph.shape(other)[:2]:
                return [made.inside(large, "left"), scale, shift, flat]
    else:
        for side, residual in ((large, other), (other, large)):
            biased = biased_rows(graph, side)
            if biased and side != residual:
                product, bias, rows = biased
                shape = innermost(graph.shape(side))
                left = made.add("Reshape", [product, rows], "left", shape)
                return [left, scale, shift, made.inside(residual, "right"), bias]
    return [made.inside(large, "left"), scale, shift, made.inside(other, "right")]


def biased_rows(graph: GraphIndex, side: str) -> tuple[str, str, str] | None:
    """The product, the bias, and the sizes to reshape to, of a summand that is such rows.

    (batch, rows, channels) + (channels), to (batch, height, width, channels), transposed.
    """
    outer = graph.maker.get(side)
    if outer is None or not permutes(outer, OUTERMOST):
        return None
    rows = graph.maker.get(outer.input[0])
    if rows is None or rows.op_type != "Reshape":
        return None
    biased = graph.biased(rows.input[0])
    sizes = graph.shape(rows.input[0])
    if biased is None or len(sizes) != 3 or sizes[2] != graph.shape(side)[1]:
        return None
    for name in (side, rows.output[0], rows.input[0]):
        if name in graph.given or len(graph.users(name)) != 1:
            return None
    return *biased, rows.input[1]


def _operator(made: _Made, norm: NodeProto, found: _Found, inputs: list[str]) -> None:
    """The operator, and the sum with its channels outermost where others need it."""
    operator = helper.make_node(OPERATOR, inputs, [norm.output[0]], made.name, domain=DOMAIN)
    operator.attribute.extend(norm.attribute)
    made.nodes.append(operator)
    if not found.elsewhere:
        return
    (value,) = found.total.output
    inner = f"{made.name}.sum"
    operator.output.append(inner)
    made.shapes[inner] = innermost(made.graph.shape(value))
    made.known[value] = inner
    made.nodes.append(
        helper.make_node("Transpose", [inner], [value], name=f"{made.name}.to_sum", perm=OUTERMOST)
    )


def permutes(node: NodeProto, order: list[int]) -> bool:
    """Whether a node is a transposition into an order."""
    told = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
    return node.op_type == "Transpose" and told == order


def innermost(shape: Shape) -> Shape:
    """(batch, channels, height, width) as (batch, height, width, channels)."""
    return tuple(shape[axis] for axis in INNERMOST)


def in_parts(model: ModelProto) -> ModelProto:
    """A copy of the model with every such operator, and every GroupNorm, in standard ones.

    The bias is added first and each sum rounded to the graph's precision, as the kernel does.
    """
    graph, plain = GraphIndex(model), ModelProto()
    plain.CopyFrom(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        mine = node.op_type == OPERATOR and node.domain == DOMAIN
        nodes += _parts(plain, graph, node) if mine else [node]
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return group_norm_parts.in_parts(plain)


def _parts(model: ModelProto, graph: GraphIndex, node: NodeProto) -> list[NodeProto]:
    source, scale, shift, skip, *bias = node.input
    total = node.output[1] if len(node.output) > 1 else f"{node.name}.summed"
    shape, made = graph.shape(source), list[NodeProto]()
    for each in bias:
        made.append(helper.make_node("Add", [source, each], [f"{node.name}.biased"]))
        source = f"{node.name}.biased"
    if len(graph.shape(skip)) == 2:
        sizes = numpy_helper.from_array(np.array([shape[0], 1, 1, shape[3]]), f"{node.name}.sizes")
        model.graph.initializer.append(sizes)
        made.append(helper.make_node("Reshape", [skip, sizes.name], [f"{node.name}.skip"]))
        skip = f"{node.name}.skip"
    made.append(helper.make_node("Add", [source, skip], [total]))
    if len(node.output) == 1:
        kind = graph.type(node.input[0])
        model.graph.value_info.append(helper.make_tensor_value_info(total, kind, shape))
    norm = helper.make_node(
        UNSUMMED, [total, scale, shift], [node.output[0]], node.name, domain=DOMAIN
    )
    norm.attribute.extend(node.attribute)
    return [*made, norm]
