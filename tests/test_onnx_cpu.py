"""ONNX Runtime on the CPU: graphs take turns with the same memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from scanside.runtime.engines.onnx_cpu import OnnxEngine

NUMBERS = 50_000_000
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from scanside.runtime.bench.host_memory import host_memory
from scanside.runtime.engines.onnx_cpu import OnnxEngine

engines = [OnnxEngine(f"graph {number}", Path(sys.argv[1]), 1) for number in range(3)]
held = [host_memory()["anonymous"]]
for engine in engines:
    found = engine.run({"x": np.full(1, 4, np.float32)})
    assert found["y"].item() == 2.0
    held.append(host_memory()["anonymous"])
print(*held)
"""


@pytest.fixture
def large_between(tmp_path: Path) -> Path:
    """A graph of one number to one number, by way of 200 MB."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [NUMBERS])
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["many"]),
        helper.make_node("Sqrt", ["many"], ["roots"]),
        helper.make_node("ReduceMax", ["roots"], ["y"], keepdims=1),
    ]
    number = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(nodes, "large_between", number[:1], number[1:], [shape])
    path = tmp_path / "large_between.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_graph_computes_where_the_last_one_did(large_between: Path):
    command = [sys.executable, "-P", "-c", SCRIPT, str(large_between)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    before, once, twice, thrice = map(float, run.stdout.split())
    assert once - before > 4 * NUMBERS / 2
    assert twice < before + 2 * (once - before)
    assert thrice - twice < 4 * NUMBERS / 10


def test_a_session_of_somebody_else_is_left_alone(large_between: Path):
    OnnxEngine("ours", large_between, 1)
    theirs = ort.InferenceSession(large_between, providers=["CPUExecutionProvider"])
    (found,) = theirs.run(None, {"x": np.full(1, 9, np.float32)})
    assert found.item() == 3.0


@pytest.mark.parametrize("weights_mb", [1, 70])
def test_a_large_graph_computes_what_a_small_one_does(tmp_path: Path, weights_mb: int):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((weights_mb * 250, 1000)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, len(weights)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 1000])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "product.onnx"
    onnx.save(model, path)
    x = rng.standard_normal((2, len(weights)), np.float32)
    found = OnnxEngine("encoder", path, 2).run({"x": x})["y"]
    np.testing.assert_allclose(found, x @ weights, rtol=1e-3, atol=1e-2)
