"""Mean and inverse deviation of a normalisation, computed beside it: the same, and buildable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from scanside.export.norm_outputs import split_norm_outputs
from scanside.runtime.engines.rtx_builder import build_rtx
from scanside.runtime.engines.tensorrt_library import library
from scanside.runtime.errors import DeviceError

SHAPE, REDUCED = (1, 5, 16), (1, 5, 1)


def saved(path: Path) -> Path:
    """y = norm(x) + mean(x) * inverse deviation(x)."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(16).astype(np.float32), name)
        for name in ("scale", "bias")
    ]
    nodes = [
        helper.make_node(
            "LayerNormalization", ["x", "scale", "bias"], ["n", "mean", "inverse"], epsilon=1e-3
        ),
        helper.make_node("Mul", ["mean", "inverse"], ["m"]),
        helper.make_node("Add", ["n", "m"], ["y"]),
    ]
    shapes = {"x": SHAPE, "y": SHAPE, "n": SHAPE, "mean": REDUCED, "inverse": REDUCED, "m": REDUCED}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    inner = [values[name] for name in ("n", "mean", "inverse", "m")]
    graph = helper.make_graph(
        nodes, "norm", [values["x"]], [values["y"]], weights, value_info=inner
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def answer(path: Path) -> np.ndarray:
    x = 3 + 2 * np.random.default_rng(1).standard_normal(SHAPE, np.float32)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_a_graph_computes_the_same_and_can_be_built(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "before.onnx"), tmp_path / "after.onnx"
    model = ir.load(before)
    split_norm_outputs(model)
    ir.save(model, after)
    onnx.checker.check_model(str(after), full_check=True)
    norms = [n for n in onnx.load(after).graph.node if n.op_type == "LayerNormalization"]
    assert [len(node.output) for node in norms] == [1]
    np.testing.assert_allclose(answer(after), answer(before), rtol=1e-5, atol=1e-5)
    rtx = library("rtx")
    with pytest.raises(DeviceError, match="LayerNormalization"):
        build_rtx(rtx, "norm", before, ("sm_89",))
    record, _ = build_rtx(rtx, "norm", after, ("sm_89",))
    assert record.layers["normalisation"] >= 1
