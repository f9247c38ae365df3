"""How much arithmetic, and how many bytes of weights, a compiled graph needs for one call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from gguf import GGUFReader

_PRODUCTS = ("MatMul", "MatMulInteger", "Gemm", "Conv", "ConvInteger")
_INTEGER = ("MatMulInteger", "ConvInteger")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Work:
    """What has to be done whatever the program is: products, and reading every weight once."""

    float_operations: float
    """Multiplications and additions of products in floating point."""
    integer_operations: float
    """The same in 8 bits."""
    weight_bytes: int


def onnx_work(path: Path) -> Work:
    """Products of a graph with static shapes; everything else in it is not counted.

    Raises
    ------
    ValueError
        A product whose shape is not known.
    """
    model = onnx.load(path, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = _shapes(inferred.graph)
    counts = {True: 0.0, False: 0.0}
    for node in inferred.graph.node:
        if node.op_type in _PRODUCTS:
            try:
                counts[node.op_type in _INTEGER] += _operations(node, shapes)
            except KeyError as exc:
                raise ValueError(f"{path}: {node.name} has no static shape for {exc}") from exc
    weights = sum(map(_bytes, inferred.graph.initializer))
    return Work(counts[False], counts[True], weights)


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    values = [*graph.value_info, *graph.input, *graph.output]
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
    return shapes | {one.name: tuple(one.dims) for one in graph.initializer}


def _operations(node: Any, shapes: Shapes) -> float:
    first, weight = shapes[node.input[0]], shapes[node.input[1]]
    made = math.prod(shapes[node.output[0]])
    if node.op_type.startswith("Conv"):
        return 2.0 * made * math.prod(weight[1:])
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return 2.0 * made * (first[-2] if turned else first[-1])


def _bytes(weight: Any) -> int:
    width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)).itemsize
    return math.prod(weight.dims) * width


def token_work(path: Path) -> Work:
    """One token of a GGUF language model: every matrix once; attention over the cache is not
    counted.
    """
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    # a row is looked up in the embedding; without an output matrix it is multiplied by, too
    skipped = "token_embd.weight" if "output.weight" in tensors else ""
    used = [t for name, t in tensors.items() if name != skipped and len(t.shape) == 2]
    operations = 2.0 * sum(int(t.n_elements) for t in used)
    return Work(0.0, operations, sum(int(t.n_bytes) for t in used))
