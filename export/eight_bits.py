"""A float32 graph whose products with weights are taken in 8 bits, for CPUs.

Weights are rounded once, with a scale for each output; what they are multiplied with is rounded as
it comes, with a scale for each call (ONNX Runtime's dynamic quantization). All else stays float32:
norms, softmax, convolutions, and products of two activations.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.quantization import QuantType, quantize_dynamic

from .half_weights import halve_weights
from .to_onnx import save_graph

OPERATORS = ("MatMul", "Gemm")


def to_eight_bits(path: Path) -> None:
    """Rewrite a graph, and its external weights, in place.

    Parameters
    ----------
    path : Path
        An `.onnx` file of `to_onnx.export_graph`.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".int8-") as scratch:
        wide, quantised = Path(scratch, "wide.onnx"), Path(scratch, "quantised.onnx")
        model = ir.load(path)
        _widen_weights(model)
        save_graph(model, wide)
        _drop_shapes(wide)
        large = wide.with_name("wide.onnx.data").exists()
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # it advises a step that changes nothing here
        try:
            quantize_dynamic(
                wide,
                quantised,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=large,
                extra_options={"MatMulConstBOnly": True},
            )
        finally:
            logging.getLogger().setLevel(level)
        model = ir.load(quantised)
        halve_weights(model)
        # what is left of the old weights is read while the new file is written
        save_graph(model, Path(scratch, path.name))
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        for file in Path(scratch).glob(f"{path.name}*"):
            file.replace(path.parent / file.name)


def _drop_shapes(path: Path) -> None:
    """Forget the noted shapes of inner values: the quantizer transposes weights and infers anew."""
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]
    onnx.save(model, path)


def _widen_weights(model: ir.Model) -> None:
    """Undo `halve_weights`, in place: the quantizer looks for weights in float32."""
    graph = model.graph
    for node in list(graph):
        twin = node.inputs[0] if node.op_type == "Cast" else None
        if twin is None or twin.const_value is None:
            continue
        if twin.name is None or twin.name not in graph.initializers:
            continue
        name = node.outputs[0].name
        values = twin.const_value.numpy().astype(np.float32)
        weight = ir.Value(
            name=f"{name}.wide",
            shape=ir.Shape(values.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(values, name=f"{name}.wide"),
        )
        ir.convenience.replace_all_uses_with(node.outputs[0], weight)
        graph.remove(node)
        del graph.initializers[twin.name]
        graph.register_initializer(weight)
