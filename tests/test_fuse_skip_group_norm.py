"""A sum and its group normalisation as one operator; only a GPU can run it.

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

from scanside.export.attention_operator import fuse_attention
from scanside.export.graph_index import GraphIndex
from scanside.export.group_norm_operator import OPERATOR as UNSUMMED
from scanside.export.group_norm_operator import fuse_group_norms
from scanside.export.skip_group_norm_operator import (
    OPERATOR,
    fuse_skip_group_norms,
    fuse_skip_group_norms_file,
    in_parts,
)
from scanside.export.skip_norm_operator import fuse_skip_norms
from scanside.export.to_onnx import export_graph
from scanside.runtime.bundle import REFERENCE

TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
BOUNDS = {TensorProto.FLOAT: 1e-5, TensorProto.FLOAT16: 4e-3}
SIZES = (2, 12, 5, 7)


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


def operators(model: ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == OPERATOR]


class Blocks(nn.Module):
    """A residual block, then rows of channels as a transformer's, as the U-Net has them."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(3, 12, eps=0.1) for _ in range(3))
        self.rows = nn.Linear(12, 12)
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """(2, 12, 5, 7) and (2, 12) -> the last sum, normalised, and itself."""
        silu = nn.functional.silu
        h = self.convolutions[0](x) + time[:, :, None, None]
        x = x + self.convolutions[1](silu(self.norms[0](h)))
        rows = self.norms[1](x).permute(0, 2, 3, 1).reshape(2, 35, 12)
        rows = self.rows(rows).reshape(2, 5, 7, 12)
        x = rows.permute(0, 3, 1, 2) + x
        return silu(self.norms[2](x)), x


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("blocks") / "blocks.onnx"
    inputs = {"x": torch.randn(SIZES), "time": torch.randn(SIZES[:2])}
    return export_graph(Blocks(), inputs, ["normal", "residual"], path)


def summed(
    kind: int = TensorProto.FLOAT,
    *,
    sizes: tuple[tuple[int, ...], ...] = (SIZES, SIZES),
    tapped: bool = False,
    twice: bool = False,
    silu: bool = False,
    groups: int = 2,
) -> ModelProto:
    """The group normalisation of a sum x + y, which a sine reads first where it is `tapped`.

    `twice` normalises the sum again.
    """
    rng, dtype = np.random.default_rng(1), TYPES[kind]
    channels = SIZES[1]
    values = {
        "split": np.array([2, groups, -1]),
        "whole": np.array(SIZES),
        "ones": np.ones(groups, dtype),
        "zeros": np.zeros(groups, dtype),
        "scale": rng.standard_normal((channels, 1, 1)).astype(dtype),
        "shift": rng.standard_normal((channels, 1, 1)).astype(dtype),
    }
    nodes = [helper.make_node("Add", ["x", "y"], ["s"])]
    if tapped:
        nodes.append(helper.make_node("Sin", ["s"], ["sine"]))
    for end in ("n", *(["m"] if twice else [])):
        last = f"{end}.a" if silu else end
        nodes += [
            helper.make_node("Reshape", ["s", "split"], [f"{end}.rows"]),
            helper.make_node(
                "InstanceNormalization",
                [f"{end}.rows", "ones", "zeros"],
                [f"{end}.i"],
                epsilon=0.02,
            ),
            helper.make_node("Reshape", [f"{end}.i", "whole"], [f"{end}.joined"]),
            helper.make_node("Mul", [f"{end}.joined", "scale"], [f"{end}.m"]),
            helper.make_node("Add", [f"{end}.m", "shift"], [last]),
        ]
        if silu:
            nodes.append(helper.make_node("Sigmoid", [last], [f"{end}.s"]))
            nodes.append(helper.make_node("Mul", [last, f"{end}.s"], [end]))
    given = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, shape in zip("xy", sizes, strict=True)
    ]
    outputs = ["n", *(["sine"] if tapped else []), *(["m"] if twice else [])]
    out = [helper.make_tensor_value_info(name, kind, SIZES) for name in outputs]
    constants = [numpy_helper.from_array(each, name) for name, each in values.items()]
    graph = helper.make_graph(nodes, "sum", given, out, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model


def test_blocks_take_their_sums_times_and_biases_in(blocks: Path) -> None:
    model = onnx.load(blocks)
    plain = answers(model)
    assert fuse_group_norms(model).fused == 3
    told = fuse_skip_group_norms(model)
    assert (told.fused, dict(told.left)) == (3, {})
    onnx.checker.check_model(model)
    assert not {"Add", "Unsqueeze"} & set(kinds(model))
    by_time, residual, biased = operators(model)
    assert by_time.input[3] == "time"  # (batch, channels), as it comes
    assert [len(node.input) for node in (by_time, residual, biased)] == [4, 4, 5]
    assert [len(node.output) for node in (by_time, residual, biased)] == [1, 2, 2]
    assert biased.input[3] == residual.output[1]  # the sum, from one operator to the other
    for node in operators(model):
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert (attributes["groups"], attributes["channels_last"]) == (3, 1)
        assert attributes["epsilon"] == pytest.approx(0.1)
        assert attributes["activation"] == (node is not residual)
    agree(answers(in_parts(model)), plain)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        (SIZES, SIZES),
        (SIZES, (2, 12, 1, 1)),
        ((2, 12, 1, 1), SIZES),
    ],
    ids=["residual", "by channel", "by channel, swapped"],
)
def test_a_sum_is_normalised_and_given_out(
    kind: int, tapped: bool, silu: bool, sizes: tuple[tuple[int, ...], ...]
) -> None:
    model = summed(kind, sizes=sizes, tapped=tapped, silu=silu)
    plain = answers(model)
    assert fuse_group_norms(model).fused == 1
    told = fuse_skip_group_norms(model)
    assert (told.fused, dict(told.left)) == (1, {})
    onnx.checker.check_model(model)
    (operator,) = operators(model)
    assert {"Add", UNSUMMED}.isdisjoint(kinds(model))
    assert len(operator.output) == 1 + tapped
    assert kinds(model).count("Transpose") == 3 + tapped
    agree(answers(in_parts(model)), plain, BOUNDS[kind])


def test_who_reads_a_sum_finds_it_after_the_operator() -> None:
    model = summed(tapped=True)
    fuse_group_norms(model)
    fuse_skip_group_norms(model)
    assert kinds(model) == ["Transpose", "Transpose", OPERATOR, "Transpose", "Sin", "Transpose"]


def test_a_sum_that_is_normalised_twice_is_taken_once() -> None:
    model = summed(twice=True)
    plain = answers(model)
    assert fuse_group_norms(model).fused == 2
    told = fuse_skip_group_norms(model)
    assert told.fused == 1
    assert dict(told.left) == {"its sum comes out of another one's operator": 1}
    agree(answers(in_parts(model)), plain)


def test_a_value_that_is_added_to_itself_is_both_summands() -> None:
    model = summed()
    model.graph.node[0].input[1] = "x"
    del model.graph.input[1]
    plain = answers(model)
    fuse_group_norms(model)
    assert fuse_skip_group_norms(model).fused == 1
    agree(answers(in_parts(model)), plain)


@pytest.mark.parametrize("shape", [(12, 1, 1), (1, 12, 1, 1), (2, 1, 5, 7), (1,)], ids=str)
def test_a_summand_of_another_shape_is_left_alone(shape: tuple[int, ...]) -> None:
    model = summed(sizes=(SIZES, shape))
    fuse_group_norms(model)
    before = model.SerializeToString()
    told = fuse_skip_group_norms(model)
    why = "its sum is not of two values of one shape, or of one number a channel"
    assert (told.fused, dict(told.left)) == (0, {why: 1})
    assert model.SerializeToString() == before


def normalised(source: str, shape: tuple[int, ...], order: list[int] | None) -> ModelProto:
    """A GroupNorm of x, or of x + x, transposed in some order first."""
    nodes = [helper.make_node("Add", ["x", "x"], ["s"])]
    if order:
        nodes.append(helper.make_node("Transpose", [source], ["t"], perm=order))
    norm = helper.make_node(
        UNSUMMED,
        ["t" if order else source, "scale", "shift"],
        ["y"],
        domain="com.microsoft",
        groups=2,
        activation=0,
    )
    weights = [numpy_helper.from_array(np.ones(12, np.float32), n) for n in ("scale", "shift")]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 5, 7, 12))]
    graph = helper.make_graph([*nodes, norm], "norm", given, out, weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (normalised("x", SIZES, [0, 2, 3, 1]), "its input is no sum"),
        (
            normalised("s", (2, 5, 7, 12), None),
            "its input does not come from channels outermost",
        ),
        (
            normalised("s", (2, 12, 7, 5), [0, 3, 2, 1]),
            "its input does not come from channels outermost",
        ),
    ],
    ids=["no sum", "innermost already", "another order"],
)
def test_what_is_no_sum_in_front_is_left_alone(model: ModelProto, reason: str) -> None:
    told = fuse_skip_group_norms(model)
    assert (told.fused, dict(told.left)) == (0, {reason: 1})


def test_a_scale_that_is_computed_is_left_alone() -> None:
    model = normalised("s", SIZES, [0, 2, 3, 1])
    del model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Neg", ["shift"], ["scale"]))
    told = fuse_skip_group_norms(model)
    assert dict(told.left) == {"its scale or shift is made by another operator": 1}


def test_the_transposed_sum_that_others_read_is_left_alone() -> None:
    model = normalised("s", SIZES, [0, 2, 3, 1])
    model.graph.output.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, (2, 5, 7, 12)))
    told = fuse_skip_group_norms(model)
    assert dict(told.left) == {"its inner values are used elsewhere": 1}


def test_a_bias_whose_sum_is_read_elsewhere_stays_outside(blocks: Path) -> None:
    model = onnx.load(blocks)
    (bias,) = [
        node
        for node in model.graph.node
        if node.op_type == "Add" and model.graph.node[-1] is not node and _is_rows(model, node)
    ]
    model.graph.output.append(
        helper.make_tensor_value_info(bias.output[0], TensorProto.FLOAT, (2, 35, 12))
    )
    plain = answers(model)
    fuse_group_norms(model)
    assert fuse_skip_group_norms(model).fused == 3
    assert [len(node.input) for node in operators(model)] == [4, 4, 4]
    agree(answers(in_parts(model)), plain)


def _is_rows(model: ModelProto, node: onnx.NodeProto) -> bool:
    products = {each.output[0] for each in model.graph.node if each.op_type == "MatMul"}
    return bool(products.intersection(node.input))


@pytest.mark.parametrize(
    ("name", "fused"), [("unet", {"by channel": 11, "biases": 2}), ("vae_decoder", {})]
)
def test_the_reference_graphs_give_the_same_answers(name: str, fused: dict[str, int]) -> None:
    model = onnx.load(REFERENCE / f"{name}.onnx")
    plain = answers(model, 3)
    fuse_attention(model)
    norms = fuse_group_norms(model).fused
    fuse_skip_norms(model)
    sums = kinds(model).count("Add")
    told = fuse_skip_group_norms(model)
    assert told.fused + told.left["its input is no sum"] == norms
    found = operators(model)
    assert len(found) == told.fused >= norms / 3
    biases = sum(len(node.input) == 5 for node in found)
    assert kinds(model).count("Add") == sums - told.fused - biases
    assert "Unsqueeze" not in kinds(model)
    graph = GraphIndex(model)
    by_channel = sum(len(graph.shape(node.input[3])) == 2 for node in found)
    assert {"by channel": by_channel, "biases": biases} == {"by channel": 0, "biases": 0, **fused}
    agree(answers(in_parts(model), 3), plain)


def test_a_file_is_rewritten_in_place(blocks: Path, tmp_path: Path) -> None:
    path = tmp_path / "blocks.onnx"
    model = onnx.load(blocks)
    fuse_group_norms(model)
    onnx.save(model, path)
    told = fuse_skip_group_norms_file(path)
    assert str(told) == "3 as one operator each"
    assert told.as_dict() == {
        "operator": "com.microsoft.SkipGroupNorm",
        "fused": 3,
        "left": {},
    }
    assert [each.name for each in tmp_path.iterdir()] == ["blocks.onnx"]
    agree(answers(in_parts(onnx.load(path))), answers(onnx.load(blocks)))


def test_the_comparison_can_fail(blocks: Path) -> None:
    model = onnx.load(blocks)
    plain = answers(model)
    fuse_group_norms(model)
    fuse_skip_group_norms(model)
    operators(model)[2].input[4] = "convolutions.0.bias"
    assert any(tensor.name == "convolutions.0.bias" for tensor in model.graph.initializer)
    with pytest.raises(AssertionError):
        agree(answers(in_parts(model)), plain)
