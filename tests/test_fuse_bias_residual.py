"""A bias and the residual behind it as one operator; only a GPU can run it.

ONNX Runtime's CPU provider does not have the operator, so standard ones take its place here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from scanside.export import bias_residual_operator, gelu_operator, skip_group_norm_operator
from scanside.export.attention_operator import fuse_attention
from scanside.export.bias_residual_operator import (
    OPERATOR,
    fuse_bias_residuals,
    fuse_bias_residuals_file,
    in_parts,
)
from scanside.export.gelu_operator import fuse_gelus
from scanside.export.group_norm_operator import fuse_group_norms
from scanside.export.packed_attention_operator import fuse_packed_attention
from scanside.export.skip_group_norm_operator import fuse_skip_group_norms
from scanside.export.skip_norm_operator import fuse_skip_norms
from scanside.export.states_operator import fuse_states
from scanside.export.to_onnx import export_graph
from scanside.runtime.bundle import REFERENCE

TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
BOUNDS = {TensorProto.FLOAT: 1e-5, TensorProto.FLOAT16: 4e-3}
WIDTH = 320


def answers(model: ModelProto, seed: int = 0) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    feeds = {
        i.name: rng.standard_normal(i.shape).astype(kinds[i.type]) for i in session.get_inputs()
    }
    return session.run(None, feeds)


def agree(got: list[np.ndarray], want: list[np.ndarray], bound: float = 1e-5) -> None:
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        apart = np.abs(one.astype(np.float64) - other.astype(np.float64)).max()
        assert apart <= bound * np.abs(other.astype(np.float64)).max()


def kinds(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


class End(nn.Module):
    """The end of a transformer of the U-Net: a layer with its residual, another one around all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.convolution = nn.Conv2d(WIDTH, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(2, 320, 2, 3) -> a convolution of the last sum, and that itself."""
        rows = x.permute(0, 2, 3, 1).reshape(2, 6, WIDTH)
        rows = rows + self.layers[0](torch.sin(rows))
        out = self.layers[1](rows).reshape(2, 2, 3, WIDTH).permute(0, 3, 1, 2) + x
        return self.convolution(out), out


@pytest.fixture(scope="module")
def end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("end") / "end.onnx"
    return export_graph(End(), {"x": torch.randn(2, WIDTH, 2, 3)}, ["y", "sum"], path)


def summed(
    kind: int = TensorProto.FLOAT,
    *,
    width: int = WIDTH,
    image: bool = False,
    order: str = "biased first",
    transposed: bool = False,
    tapped: str = "",
    bias: tuple[int, ...] = (),
) -> ModelProto:
    """The sum of x + bias and y, as rows or as an `image`; `tapped` is given out, too.

    `transposed` says that y had its channels innermost before.
    """
    rng, dtype = np.random.default_rng(1), TYPES[kind]
    rows, inner, outer = (2, 6, width), (2, 2, 3, width), (2, width, 2, 3)
    values = {
        "bias": rng.standard_normal(bias or (width,)).astype(dtype),
        "shape": np.array(inner),
    }
    nodes = [helper.make_node("Add", ["x", "bias"], ["b"])]
    side, other = "b", "y"
    if image:
        nodes.append(helper.make_node("Reshape", ["b", "shape"], ["r"]))
        nodes.append(helper.make_node("Transpose", ["r"], ["t"], perm=[0, 3, 1, 2]))
        side = "t"
    if transposed:
        nodes.append(helper.make_node("Transpose", ["y"], ["u"], perm=[0, 3, 1, 2]))
        other = "u"
    summands = [side, other] if order == "biased first" else [other, side]
    nodes.append(helper.make_node("Add", summands, ["s"]))
    y = inner if transposed else outer if image else rows
    given = [
        helper.make_tensor_value_info("x", kind, rows),
        helper.make_tensor_value_info("y", kind, y),
    ]
    out = [helper.make_tensor_value_info("s", kind, outer if image else rows)]
    out += [helper.make_tensor_value_info(tapped, kind, [None] * 3)] if tapped else []
    constants = [numpy_helper.from_array(each, name) for name, each in values.items()]
    graph = helper.make_graph(nodes, "sum", given, out, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_transformers_end_takes_biases_and_residuals_in(end: Path) -> None:
    model = onnx.load(end)
    plain = answers(model)
    told = fuse_bias_residuals(model)
    assert (told.fused, dict(told.left)) == (2, {})
    onnx.checker.check_model(model)
    assert "Add" not in kinds(model)
    assert kinds(model).count(OPERATOR) == 2
    assert kinds(model)[-3:] == ["Reshape", "Transpose", "Conv"]
    agree(answers(in_parts(model)), plain)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("order", ["biased first", "biased last"])
@pytest.mark.parametrize(
    ("image", "transposed", "expected"),
    [
        (False, False, [OPERATOR]),
        (True, False, ["Transpose", "Reshape", OPERATOR, "Reshape", "Transpose"]),
        (True, True, ["Reshape", OPERATOR, "Reshape", "Transpose"]),
    ],
    ids=["rows", "image", "image, transposed before"],
)
def test_bias_and_residual_are_one_operator(
    image: bool, transposed: bool, expected: list[str], order: str, kind: int
) -> None:
    model = summed(kind, image=image, transposed=transposed, order=order)
    plain = answers(model)
    told = fuse_bias_residuals(model)
    assert (told.fused, dict(told.left)) == (1, {})
    onnx.checker.check_model(model)
    assert kinds(model) == expected
    (operator,) = [node for node in model.graph.node if node.op_type == OPERATOR]
    assert list(operator.input[:2]) == ["x", "bias"]
    agree(answers(in_parts(model)), plain, BOUNDS[kind])


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (summed(width=352), {"it has 352 columns": 1}),
        (summed(width=352, image=True), {"it has 352 columns": 1}),
        (summed(tapped="b"), {"its inner values are used elsewhere": 1}),
        (summed(tapped="b", image=True), {}),
        (summed(bias=(6, WIDTH)), {}),
    ],
    ids=["width", "width of an image", "tapped", "tapped in front of an image", "no bias"],
)
def test_what_the_operator_does_not_take_is_left_alone(
    model: ModelProto, left: dict[str, int]
) -> None:
    before = model.SerializeToString()
    told = fuse_bias_residuals(model)
    assert (told.fused, dict(told.left)) == (0, left)
    assert model.SerializeToString() == before


def test_a_residual_of_another_shape_is_left_alone() -> None:
    model = summed()
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 1
    assert answers(model)
    assert fuse_bias_residuals(model).fused == 0


def test_a_file_is_rewritten_in_place(end: Path, tmp_path: Path) -> None:
    path = tmp_path / "end.onnx"
    path.write_bytes(end.read_bytes())
    told = fuse_bias_residuals_file(path)
    assert str(told) == "2 as one operator each"
    assert told.as_dict() == {"operator": "com.microsoft.BiasAdd", "fused": 2, "left": {}}
    assert [each.name for each in tmp_path.iterdir()] == ["end.onnx"]
    agree(answers(in_parts(onnx.load(path))), answers(onnx.load(end)))


@pytest.mark.parametrize(
    "norms", [[], ["skip"], ["skip", "groups"]], ids=["alone", "after skip", "after both"]
)
def test_the_reference_unet_gives_the_same_answers(
    norms: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every pass in its order; the toy's layers are narrower than the kernels' are."""
    monkeypatch.setattr(gelu_operator, "GATED_COLUMNS", (256, 512, 768))
    monkeypatch.setattr(bias_residual_operator, "COLUMNS", (32, 64, 96))
    model = onnx.load(REFERENCE / "unet.onnx")
    plain = answers(model, 3)
    fuse_attention(model)
    fuse_group_norms(model)
    if "groups" in norms:
        fuse_skip_group_norms(model)
    fuse_packed_attention(model)
    fuse_gelus(model)
    if "skip" in norms:
        fuse_skip_norms(model)
    sums = kinds(model).count("Add")
    told = fuse_bias_residuals(model)
    # seven transformers: three residuals inside, of which two are normalised, and one around each;
    # of these two are normalised
    expected = 28 - 14 * ("skip" in norms) - 2 * ("groups" in norms)
    assert (told.fused, dict(told.left)) == (expected, {})
    assert kinds(model).count("Add") == sums - 2 * expected
    fuse_states(model)
    for parts in (in_parts, gelu_operator.in_parts, skip_group_norm_operator.in_parts):
        model = parts(model)
    agree(answers(model, 3), plain)


def test_the_comparison_can_fail(end: Path) -> None:
    model = onnx.load(end)
    plain = answers(model)
    fuse_bias_residuals(model)
    first, second = [node for node in model.graph.node if node.op_type == OPERATOR]
    first.input[1], second.input[1] = second.input[1], first.input[1]
    with pytest.raises(AssertionError):
        agree(answers(in_parts(model)), plain)
