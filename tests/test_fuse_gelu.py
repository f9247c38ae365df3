"""A bias and its GELU as one operator, and a gate of two halves as another that a GPU alone runs.

ONNX Runtime's CPU provider does not have the gate, so standard operators take its place here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from scanside.export.gelu_operator import GATED, OPERATOR, fuse_gelus, fuse_gelus_file, in_parts
from scanside.export.to_onnx import export_graph
from scanside.runtime.bundle import REFERENCE

from .graph_answers import TYPES, agree, answers, kinds

NOT_BIASED = "its input is no sum with one number a column"


class Layers(nn.Module):
    """A feed-forward layer of the encoder, then one of the U-Net, which gates."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.plain, self.gating = nn.Linear(16, 24), nn.Linear(24, columns)
        self.out = nn.Linear(columns // 2, 16)

    def forward(self, x: Tensor) -> Tensor:
        """(2, 3, 16) -> (2, 3, 16)."""
        left, right = self.gating(nn.functional.gelu(self.plain(x))).chunk(2, dim=-1)
        return self.out(left * nn.functional.gelu(right))


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """The graph, and PyTorch's answer to what `answers` asks."""
    torch.manual_seed(0)
    module = Layers(2560)
    x = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
    path = tmp_path_factory.mktemp("layers") / "layers.onnx"
    export_graph(module, {"x": torch.from_numpy(x)}, ["y"], path)
    with torch.no_grad():
        return path, module(torch.from_numpy(x)).numpy()


def activated(
    kind: int = TensorProto.FLOAT,
    *,
    first: str = "x",
    tapped: bool = False,
    shape: tuple[int, ...] = (3, 8),
    **attributes: Any,
) -> ModelProto:
    """The GELU of x + bias, with `first` of them first; `tapped` gives the sum out too."""
    bias = np.random.default_rng(1).standard_normal(shape[-1]).astype(TYPES[kind])
    names = ["x", "bias"] if first == "x" else ["bias", "x"]
    nodes = [
        helper.make_node("Add", names, ["s"]),
        helper.make_node("Gelu", ["s"], ["y"], **attributes),
    ]
    outputs = [*(["s"] if tapped else []), "y"]
    return made(nodes, kind, {"x": shape}, dict.fromkeys(outputs, shape), {"bias": bias})


def gated(
    kind: int = TensorProto.FLOAT,
    *,
    rows: tuple[int, ...] = (2, 3),
    columns: int = 2560,
    right: int = 1,
    tapped: str = "",
    parts: tuple[int, int] | None = None,
) -> ModelProto:
    """A gate of x + bias; `right` is the half whose GELU is taken, `parts` the halves' widths."""
    bias = np.random.default_rng(1).standard_normal(columns).astype(TYPES[kind])
    halves = ["l", "r"]
    constants = {"bias": bias, "parts": np.array(parts or [columns // 2] * 2)}
    nodes = [
        helper.make_node("Add", ["x", "bias"], ["s"]),
        helper.make_node("Split", ["s", "parts"], halves, axis=-1),
        helper.make_node("Gelu", [halves[right]], ["g"]),
        helper.make_node("Mul", ["g", halves[1 - right]], ["y"]),
    ]
    outputs = {"y": (*rows, columns // 2)}
    if tapped:
        outputs[tapped] = (*rows, columns if tapped == "s" else columns // 2)
    return made(nodes, kind, {"x": (*rows, columns)}, outputs, constants)


def made(
    nodes: list[NodeProto],
    kind: int,
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    constants: dict[str, np.ndarray],
) -> ModelProto:
    given, out = (
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in values.items()]
        for values in (inputs, outputs)
    )
    weights = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "gelu", given, out, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_layers_give_what_pytorch_computes(layers: tuple[Path, np.ndarray]) -> None:
    path, want = layers
    model = onnx.load(path)
    told = fuse_gelus(model)
    assert (told.fused, told.gated, dict(told.left)) == (2, 1, {})
    assert kinds(model) == ["MatMul", OPERATOR, "MatMul", GATED, "MatMul", "Add"]
    onnx.checker.check_model(model)
    agree(answers(in_parts(model)), [want])


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("first", ["x", "bias"])
def test_the_bias_may_stand_on_either_side(first: str, kind: int) -> None:
    model = activated(kind, first=first)
    plain = answers(model)
    assert fuse_gelus(model).fused == 1
    assert kinds(model) == [OPERATOR]
    assert list(model.graph.node[0].input) == ["x", "bias"]
    agree(answers(model), plain, {TensorProto.FLOAT: 1e-5, TensorProto.FLOAT16: 2e-3}[kind])


@pytest.mark.parametrize("columns", [2560, 5120, 10240])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_a_gate_multiplies_its_left_half(columns: int, kind: int) -> None:
    model = gated(kind, columns=columns)
    plain = answers(model)
    told = fuse_gelus(model)
    assert (told.fused, told.gated) == (1, 1)
    assert kinds(model) == [GATED]
    agree(
        answers(in_parts(model)), plain, {TensorProto.FLOAT: 1e-5, TensorProto.FLOAT16: 2e-3}[kind]
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (activated(approximate="tanh"), "it is an approximation"),
        (activated(tapped=True), "its inner values are used elsewhere"),
        (gated(columns=512), "its gate has 512 columns"),
        (gated(right=0), "its gate is the left half"),
        (gated(rows=(3,)), "its input is not half of (batch, rows, columns)"),
        (gated(tapped="s"), "its inner values are used elsewhere"),
        (gated(tapped="l"), "its inner values are used elsewhere"),
        (gated(tapped="g"), "its inner values are used elsewhere"),
    ],
    ids=["tanh", "sum read", "narrow", "left gates", "rank 2", "gate's sum", "left", "gelu"],
)
def test_what_the_operators_do_not_mean_is_left_alone(model: ModelProto, reason: str) -> None:
    before = model.SerializeToString()
    assert answers(model)
    told = fuse_gelus(model)
    assert (told.fused, told.gated, dict(told.left)) == (0, 0, {reason: 1})
    assert model.SerializeToString() == before


def test_a_sum_of_two_values_is_no_bias() -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["s"]), helper.make_node("Gelu", ["s"], ["y"])]
    model = made(nodes, TensorProto.FLOAT, {"x": (3, 8), "z": (8,)}, {"y": (3, 8)}, {})
    assert dict(fuse_gelus(model).left) == {NOT_BIASED: 1}


def test_a_file_is_rewritten_in_place(layers: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "layers.onnx"
    path.write_bytes(layers[0].read_bytes())
    told = fuse_gelus_file(path)
    assert str(told) == "2 as one operator each"
    assert told.as_dict() == {
        "operator": "com.microsoft.BiasGelu",
        "fused": 2,
        "left": {},
        "gated": 1,
    }
    assert [each.name for each in tmp_path.iterdir()] == ["layers.onnx"]


def test_the_reference_graphs(tmp_path: Path) -> None:
    """The encoder's layers have a bias of their own, its two small networks have it in a Gemm."""
    model = onnx.load(REFERENCE / "encoder.onnx")
    plain = answers(model, 3)
    told = fuse_gelus(model)
    assert (told.fused, told.gated, dict(told.left)) == (7, 0, {NOT_BIASED: 2})
    agree(answers(model, 3), plain)
    told = fuse_gelus(onnx.load(REFERENCE / "unet.onnx"))
    assert (told.fused, sum(told.left.values())) == (0, 7)  # of 256 to 768 columns
