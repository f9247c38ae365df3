"""What is read of an ONNX file without the onnx package, held against that package."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from scanside.runtime.bundle import REFERENCE
from scanside.runtime.engines.graph_file import GraphFile
from scanside.runtime.errors import BundleError


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.onnx")), ids=lambda path: path.stem)
def test_a_graph_is_read_as_the_onnx_package_reads_it(path: Path) -> None:
    found = GraphFile.read(path)
    model = onnx.load(path, load_external_data=False)
    assert found.operators == dict(Counter(node.op_type for node in model.graph.node))
    for tensors, values in (
        (found.inputs, model.graph.input),
        (found.outputs, model.graph.output),
    ):
        assert {name: (spec.shape, spec.dtype) for name, spec in tensors.items()} == {
            v.name: (
                tuple(d.dim_value for d in v.type.tensor_type.shape.dim),
                helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name,
            )
            for v in values
        }
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert {file.name for file in found.external} == locations


def saved(path: Path, *, external: bool = False) -> Path:
    """x (4, 8) -> relu -> y, then y @ w -> z, y + y -> s, with w (8, 8) stored as float16."""
    weight = numpy_helper.from_array(np.ones((8, 8), np.float16), "w16")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {"w": (8, 8), "y": (4, 8), "q": (4, 8)}.items()
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["w16"], ["w"], to=TensorProto.FLOAT),
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Neg", ["y"], ["q"]),
            helper.make_node("MatMul", ["q", "w"], ["z"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 8))],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, (4, 8))],
        [weight],
        value_info=values,
    )
    model = helper.make_model(graph)
    onnx.save(model, path, save_as_external_data=external, location="small.data", size_threshold=0)
    return path


def test_memory_is_what_lives_at_once_and_what_casts_make_of_weights(tmp_path: Path) -> None:
    found = GraphFile.read(saved(tmp_path / "small.onnx"))
    assert found.weights_bytes == 8 * 8 * 4  # as float32, which the product takes
    assert found.activation_bytes == 2 * 4 * 8 * 4  # y is gone when z comes
    assert found.external == ()


def test_files_with_weights_are_named(tmp_path: Path) -> None:
    found = GraphFile.read(saved(tmp_path / "small.onnx", external=True))
    assert found.external == (tmp_path / "small.data",)
    assert found.weights_bytes == 8 * 8 * 4


@pytest.mark.parametrize("content", [b"\x00" * 40, b"no graph at all", b"\x3a\xff\x01ab"])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"bad\.onnx is no ONNX graph"):
        GraphFile.read(path)


def test_a_graph_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "cut.onnx")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BundleError, match=r"cut\.onnx is no ONNX graph"):
        GraphFile.read(path)
