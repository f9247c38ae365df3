"""How large the numbers in a graph get on real inputs: what may be half precision."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

Ranges = dict[str, float]
"""Largest absolute value by the name of a tensor."""


def largest_values(path: Path, inputs: Iterable[Mapping[str, NDArray[Any]]]) -> Ranges:
    """Run a float32 graph and note the largest absolute value of every tensor that a node makes.

    The maxima are taken inside the graph, so no activation outlives its use.

    Parameters
    ----------
    path : Path
        An `.onnx` file; it is not changed.
    inputs : iterable of mappings
        Real inputs by name; the largest value over all of them counts.
    """
    model = ir.load(path)
    names = _add_maxima(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # fusions would take away the tensors that are asked about
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # in the order of the file: else all tensors would be kept until the maxima's turn comes
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".ranges-") as scratch:
        measured = Path(scratch) / "model.onnx"
        ir.save(model, measured, external_data="model.onnx.data")
        session = ort.InferenceSession(measured, options, providers=["CPUExecutionProvider"])
        found = [np.asarray(session.run(["maxima"], dict(feed))[0]) for feed in inputs]
    return dict(zip(names, np.max(found, axis=0).tolist(), strict=True))


def is_float(value: ir.Value | None) -> bool:
    """Whether a tensor is float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def _add_maxima(model: ir.Model) -> list[str]:
    graph = model.graph
    tensors = [v for node in graph for v in node.outputs if is_float(v)]
    maxima: list[ir.Value] = []
    for value in tensors:
        maxima.append(_maximum_behind(graph, value))
    axis = ir.Value(
        name="maxima.axis", const_value=ir.tensor(np.zeros(1, np.int64), name="maxima.axis")
    )
    graph.register_initializer(axis)
    rows = [_append(graph, "Unsqueeze", [value, axis]) for value in maxima]
    joined = _append(graph, "Concat", rows, axis=0)
    joined.name = "maxima"
    joined.type, joined.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([len(rows)])
    graph.outputs.append(joined)
    return [str(value.name) for value in tensors]


def _maximum_behind(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The largest magnitude of a tensor, taken right behind the node that makes it."""
    maker = value.producer()
    assert maker is not None, "a node's output"
    absolute = ir.node("Abs", inputs=[value])
    largest = ir.node("ReduceMax", inputs=absolute.outputs, attributes={"keepdims": 0})
    graph.insert_after(maker, [absolute, largest])
    return largest.outputs[0]


def _append(graph: ir.Graph, kind: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
    node = ir.node(kind, inputs=inputs, attributes=attributes)
    graph.append(node)
    return node.outputs[0]
