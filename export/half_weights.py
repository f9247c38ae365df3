"""Store the weights of an ONNX graph in half the bytes, without changing a single value.

A float32 initialiser whose values are all exact in float16 (as they are when the checkpoint itself
is half precision) becomes a float16 initialiser and a Cast. ONNX Runtime folds the Cast when it
loads, so arithmetic stays float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_SMALLEST = 256  # elements; below that a Cast costs more than the bytes that it saves


def exact_half(values: NDArray[np.float32]) -> NDArray[np.float16] | None:
    """The same values in float16, or None if one of them would change."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None


def halve_weights(model: ir.Model) -> int:
    """Replace exact float32 initialisers, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        Any graph; only its top-level initialisers are looked at.

    Returns
    -------
    saved_bytes : int
    """
    saved = 0
    casts: list[ir.Node] = []
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _SMALLEST:
            continue
        half = exact_half(tensor.numpy())
        if half is None:
            continue
        casts.append(_replace(model.graph, name, value, half))
        saved += half.nbytes
    for node in reversed(casts):
        model.graph.insert_before(model.graph[0], node)
    return saved


def _replace(graph: ir.Graph, name: str, value: ir.Value, half: NDArray[np.float16]) -> ir.Node:
    """Put a float16 twin under a new name; the Cast's output takes the old one."""
    twin = ir.Value(
        name=f"{name}.half",
        shape=ir.Shape(half.shape),
        type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=ir.tensor(half, name=f"{name}.half"),
    )
    node = ir.node(
        "Cast", inputs=[twin], attributes={"to": ir.DataType.FLOAT}, name=f"{name}.widen"
    )
    widened = node.outputs[0]
    ir.convenience.replace_all_uses_with(value, widened)
    del graph.initializers[name]
    graph.register_initializer(twin)
    widened.name, widened.shape, widened.type = name, value.shape, value.type
    return node
