"""Normalisations with one output each, which is all that TensorRT's parser takes.

The gradient of a layer normalisation needs the mean and the inverse deviation of its input, so the
exporter lets the forward node give both. Here they are computed beside it instead.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def split_norm_outputs(model: ir.Model) -> None:
    """Replace second and third outputs of LayerNormalization that are used, in place."""
    graph = model.graph
    for node in [n for n in graph if n.op_type == "LayerNormalization" and len(n.outputs) > 1]:
        source = node.inputs[0]
        assert source is not None, "ONNX requires it"
        axis, epsilon = (node.attributes.get(name) for name in ("axis", "epsilon"))
        first = axis.as_int() if axis else -1
        assert first == -1 or (source.shape and first == len(source.shape) - 1), (
            "decoders normalise over their last axis"
        )
        last = _constant(graph, np.array([-1], np.int64))
        mean = _append(graph, node, "ReduceMean", [source, last])
        centred = _append(graph, node, "Sub", [source, mean])
        square = _append(graph, node, "Mul", [centred, centred])
        variance = _append(graph, node, "ReduceMean", [square, last])
        smallest = _constant(graph, np.float32(epsilon.as_float() if epsilon else 1e-5))
        spread = _append(graph, node, "Sqrt", [_append(graph, node, "Add", [variance, smallest])])
        inverse = _append(graph, node, "Reciprocal", [spread])
        for old, new in zip(node.outputs[1:], (mean, inverse), strict=False):
            new.type, new.shape = old.type, old.shape
            for use in tuple(old.uses()):
                use.node.replace_input_with(use.idx, new)
        node.resize_outputs(1)


def _append(graph: ir.Graph, before: ir.Node, kind: str, inputs: list[ir.Value]) -> ir.Value:
    node = ir.node(kind, inputs=inputs)
    graph.insert_before(before, node)
    value, source = node.outputs[0], inputs[0]
    value.type = ir.TensorType(ir.DataType.FLOAT)
    if source.shape:
        reduced = kind == "ReduceMean"
        value.shape = ir.Shape([*source.shape[:-1], 1]) if reduced else source.shape
    return value


def _constant(graph: ir.Graph, values: object) -> ir.Value:
    array = np.asarray(values)
    name = f"norm.{array.dtype}.{array.ravel()[0]}"
    known = graph.initializers.get(name)
    if known is None:
        known = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.INT64 if array.dtype == np.int64 else ir.DataType.FLOAT),
            const_value=ir.tensor(array, name=name),
        )
        graph.register_initializer(known)
    return known
