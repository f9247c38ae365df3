"""A float32 graph to half precision, except where its own numbers forbid it.

Half precision ends at 65504 and has 11 significant bits. Which nodes stay float32 is decided by
what was measured on real inputs (`ranges.py`), for three reasons:

range   a number in or out of the node comes near the end of half precision;
square  the node squares what it is given (a norm), and the square does;
phase   the node leads to a sine or cosine, whose argument needs more digits than there are.

Inputs and outputs of the graph stay float32, so the runtime's contract does not change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .ranges import Ranges, is_float

LARGEST = 65504.0
SPARE = 4.0
"""Other inputs may give numbers this many times as large as those that were measured."""
_SQUARING = {"InstanceNormalization", "LayerNormalization", "ReduceSumSquare", "ReduceL2", "Pow"}
_PERIODIC = {"Sin", "Cos"}
_UNTOUCHED = {"Cast", "Constant", "ConstantOfShape", "Shape", "Range"}
_ONE_FLOAT_INPUT = {"Resize": 1}
"""Nodes whose later float inputs are float32 by definition."""


@dataclass(slots=True)
class HalfPlan:
    """Which nodes compute in half precision, and why the others do not."""

    half: list[ir.Node] = field(default_factory=list[ir.Node])
    kept: dict[str, list[ir.Node]] = field(default_factory=dict[str, list[ir.Node]])
    """Nodes that stay float32 by reason: range, square, phase."""
    largest_half: float = 0.0
    """Largest number that a half-precision node gives or takes."""
    largest: float = 0.0
    """Largest number in the graph."""

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        kinds = {
            reason: dict(sorted(_counted(nodes).items())) for reason, nodes in self.kept.items()
        }
        return {
            "nodes_in_half": len(self.half),
            "nodes_kept": kinds,
            "largest_in_half": round(self.largest_half, 3),
            "largest": round(self.largest, 3),
        }


def _counted(nodes: list[ir.Node]) -> dict[str, int]:
    kinds = [node.op_type for node in nodes]
    return {kind: kinds.count(kind) for kind in kinds}


def plan_half(model: ir.Model, ranges: Ranges) -> HalfPlan:
    """Decide for every node that computes with floats.

    Parameters
    ----------
    model : onnx_ir.Model
        float32; it is not changed.
    ranges : dict
        Largest absolute value of every tensor that a node makes.
    """
    plan = HalfPlan(largest=max(ranges.values(), default=0.0))
    leads_to_phase = _before_periodic(model)
    for node in model.graph:
        floats = [*float_inputs(node), *filter(is_float, node.outputs)]
        if node.op_type in _UNTOUCHED or not floats:
            continue
        largest = max(_largest(value, ranges) for value in floats)
        squares = node.op_type in _SQUARING
        if node in leads_to_phase:
            plan.kept.setdefault("phase", []).append(node)
        elif largest * SPARE > LARGEST:
            plan.kept.setdefault("range", []).append(node)
        elif squares and (largest * SPARE) ** 2 > LARGEST:
            plan.kept.setdefault("square", []).append(node)
        else:
            plan.half.append(node)
            plan.largest_half = max(plan.largest_half, largest)
    return plan


def float_inputs(node: ir.Node) -> list[ir.Value]:
    """The float32 inputs of a node that half precision would change."""
    end = _ONE_FLOAT_INPUT.get(node.op_type)
    return [value for value in node.inputs[:end] if value is not None and is_float(value)]


def _largest(value: ir.Value, ranges: Ranges) -> float:
    if value.const_value is not None:
        return float(np.abs(value.const_value.numpy()).max(initial=0.0))
    # an input of the graph is measured where it is used first
    return ranges.get(str(value.name), 0.0)


def _before_periodic(model: ir.Model) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = [node for node in model.graph if node.op_type in _PERIODIC]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        makers = (value.producer() for value in node.inputs if value is not None)
        waiting += [maker for maker in makers if maker is not None]
    return found


def to_half(model: ir.Model, plan: HalfPlan) -> None:
    """Carry out a plan, in place."""
    halves: dict[ir.Value, ir.Value] = {}
    for node in plan.half:
        for index, value in enumerate(node.inputs):
            if value is not None and value in float_inputs(node):
                if value not in halves:
                    halves[value] = _half_of(model.graph, value)
                node.replace_input_with(index, halves[value])
        for value in filter(is_float, tuple(node.outputs)):
            halves[value] = value
    made = {id(value) for node in plan.half for value in node.outputs if is_float(value)}
    members = {id(node) for node in plan.half}
    for node in plan.half:
        for value in node.outputs:
            if id(value) in made:
                _widen_for_others(model.graph, value, members)
    RemoveUnusedNodesPass()(model)


def _half_of(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The half-precision twin of a value that stays float32."""
    stored = _stored_in_half(value)
    if stored is not None:
        return stored
    maker = value.producer()
    if value.const_value is not None:
        return _half_constant(graph, value)
    cast = ir.node("Cast", inputs=[value], attributes={"to": ir.DataType.FLOAT16})
    twin = cast.outputs[0]
    twin.name, twin.shape = f"{value.name}.half", value.shape
    twin.type = ir.TensorType(ir.DataType.FLOAT16)
    if maker is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(maker, cast)
    return twin


def _stored_in_half(value: ir.Value) -> ir.Value | None:
    """The constant in half precision that a float32 value is a widened copy of."""
    maker = value.producer()
    if maker is None or maker.op_type != "Cast":
        return None
    (source,) = maker.inputs
    if source is None or source.const_value is None or source.dtype != ir.DataType.FLOAT16:
        return None
    return source


def _half_constant(graph: ir.Graph, value: ir.Value) -> ir.Value:
    assert value.const_value is not None
    name = f"{value.name}.half"
    half = value.const_value.numpy().astype(np.float16)
    twin = ir.Value(
        name=name,
        shape=ir.Shape(half.shape),
        type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=ir.tensor(half, name=name),
    )
    graph.register_initializer(twin)
    return twin


def _widen_for_others(graph: ir.Graph, value: ir.Value, members: set[int]) -> None:
    """Make a node's output half precision; whoever needs float32 gets it through a Cast."""
    uses = [use for use in value.uses() if id(use.node) not in members or not _takes_half(use)]
    shape, name = value.shape, str(value.name)
    value.type = ir.TensorType(ir.DataType.FLOAT16)
    if not uses and not value.is_graph_output():
        return
    cast = ir.node("Cast", inputs=[value], attributes={"to": ir.DataType.FLOAT})
    wide = cast.outputs[0]
    wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), shape
    maker = value.producer()
    assert maker is not None
    graph.insert_after(maker, cast)
    for use in uses:
        use.node.replace_input_with(use.idx, wide)
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = wide
        value.name, wide.name = f"{name}.half", name
    else:
        wide.name = f"{name}.wide"


def _takes_half(use: Any) -> bool:
    end = _ONE_FLOAT_INPUT.get(use.node.op_type)
    return end is None or use.idx < end


def emulate_half(model: ir.Model, plan: HalfPlan) -> None:
    """Round what half-precision nodes take and give to 11 bits, in place, all else in float32.

    ONNX Runtime's CPU backend computes half-precision nodes in float32 and drops the roundings
    between them, so running a half-precision graph there proves nothing. What is smaller than half
    precision's normal numbers (6e-5) keeps more bits than it would have.
    """
    graph = model.graph
    splitter = ir.Value(
        name="half.splitter", const_value=ir.tensor(np.float32(2**13 + 1), name="half.splitter")
    )
    graph.register_initializer(splitter)
    members = {id(node) for node in plan.half}
    rounded: dict[ir.Value, ir.Value] = {}
    for node in plan.half:
        for index, value in enumerate(node.inputs):
            if value is None or value not in float_inputs(node) or value in rounded.values():
                continue
            maker = value.producer()
            if maker is not None and id(maker) in members:
                continue  # rounded where it was made
            if _stored_in_half(value):
                continue  # exact; rounding them again, all weights would be there three times more
            if value not in rounded:
                rounded[value] = (
                    _rounded(graph, value, splitter)
                    if value.const_value is None
                    else _rounded_constant(graph, value)
                )
            node.replace_input_with(index, rounded[value])
        for value in [v for v in node.outputs if is_float(v)]:
            uses, name = tuple(value.uses()), str(value.name)
            new = rounded[value] = _rounded(graph, value, splitter)
            for use in uses:
                use.node.replace_input_with(use.idx, new)
            if value.is_graph_output():
                graph.outputs[graph.outputs.index(value)] = new
                value.name, new.name = f"{name}.exact", name
    # else a full size is written, and loaded, with every weight twice
    RemoveUnusedNodesPass()(model)


def _rounded(graph: ir.Graph, value: ir.Value, splitter: ir.Value) -> ir.Value:
    """Veltkamp's splitting (https://doi.org/10.1007/BF01397083), which rounds without a cast:
    c = (2^13 + 1) x; c - (c - x).
    """
    scaled = ir.node("Mul", inputs=[value, splitter])
    rest = ir.node("Sub", inputs=[scaled.outputs[0], value])
    last = ir.node("Sub", inputs=[scaled.outputs[0], rest.outputs[0]])
    maker = value.producer()
    if maker is None:
        graph.insert_before(graph[0], [scaled, rest, last])
    else:
        graph.insert_after(maker, [scaled, rest, last])
    new = last.outputs[0]
    new.name, new.type, new.shape = f"{value.name}.rounded", value.type, value.shape
    return new


def _rounded_constant(graph: ir.Graph, value: ir.Value) -> ir.Value:
    assert value.const_value is not None
    name = f"{value.name}.rounded"
    values = value.const_value.numpy().astype(np.float16).astype(np.float32)
    new = ir.Value(
        name=name, shape=value.shape, type=value.type, const_value=ir.tensor(values, name=name)
    )
    graph.register_initializer(new)
    return new
