"""ONNX Runtime on the CPU: what a run needed is given back after it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
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

engine = OnnxEngine("encoder", Path(sys.argv[1]), 1)
before = host_memory()["anonymous"]
found = engine.run({"x": np.ones(1, np.float32)})
after = host_memory()
print(float(found["y"][0]), before, after["anonymous"], after["peak"])
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
def test_what_lies_between_input_and_output_is_not_kept(large_between: Path):
    command = [sys.executable, "-P", "-c", SCRIPT, str(large_between)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    result, before, after, peak = map(float, run.stdout.split())
    assert result == 1.0
    assert peak - before > 4 * NUMBERS
    assert after - before < 4 * NUMBERS / 10


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
