"""A residual and its normalisation as one operator: the same answers, and the rest left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from scanside.export import gelu_operator
from scanside.export.attention_operator import fuse_attention
from scanside.export.gelu_operator import fuse_gelus
from scanside.export.group_norm_operator import fuse_group_norms
from scanside.export.group_norm_parts import in_parts as group_norms_in_parts
from scanside.export.packed_attention_operator import fuse_packed_attention
from scanside.export.skip_norm_operator import OPERATOR, fuse_skip_norms, fuse_skip_norms_file
from scanside.export.to_onnx import export_graph
from scanside.runtime.bundle import REFERENCE

from .graph_answers import TYPES, agree, answers, kinds

BOUNDS = {TensorProto.FLOAT: 1e-5, TensorProto.FLOAT16: 4e-3}


class Blocks(nn.Module):
    """Two layers as the encoder and the U-Net have them, each before its own normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(24, eps=0.1) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(2, 5, 24) -> the same, normalised, and before that."""
        x = x + self.layers[0](self.norms[0](x))
        x = self.layers[1](self.norms[1](x)) + x
        return self.norms[2](x), x


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("blocks") / "blocks.onnx"
    return export_graph(Blocks(), {"x": torch.randn(2, 5, 24)}, ["normal", "residual"], path)


def summed(
    kind: int = TensorProto.FLOAT,
    *,
    sizes: tuple[tuple[int, ...], ...] = ((2, 5, 24), (2, 5, 24)),
    bias: str = "",
    tapped: bool = False,
    twice: bool = False,
    weights: int = 2,
    **attributes: Any,
) -> ModelProto:
    """The normalisation of a sum x + y, which a sine reads before it does.

    `bias` is the side of its own sum on which y has a bias; `tapped` gives that sum out; `twice`
    normalises the sum again; `weights` says whether there is a scale alone, or a shift too.
    """
    rng, dtype = np.random.default_rng(1), TYPES[kind]
    constants = [
        numpy_helper.from_array(rng.standard_normal(sizes[0][-1]).astype(dtype), name)
        for name in ("bias", "scale", "shift")
    ]
    named = ["scale", "shift"][:weights]
    biased = {"left": ["bias", "y"], "right": ["y", "bias"]}
    nodes = [helper.make_node("Add", biased[bias], ["b"])] if bias else []
    nodes += [
        helper.make_node("Add", ["x", "b" if bias else "y"], ["s"]),
        helper.make_node("Sin", ["s"], ["sine"]),
        helper.make_node("LayerNormalization", ["s", *named], ["n"], **attributes),
    ]
    if twice:
        again = helper.make_node("LayerNormalization", ["s", "shift", "scale"], ["m"])
        nodes.append(again)
    outputs = ["n", "sine", *(["b"] if tapped else []), *(["m"] if twice else [])]
    given = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, shape in zip("xy", sizes, strict=True)
    ]
    out = [helper.make_tensor_value_info(name, kind, sizes[0]) for name in outputs]
    graph = helper.make_graph(nodes, "sum", given, out, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_blocks_take_their_sums_and_biases_in(blocks: Path) -> None:
    model = onnx.load(blocks)
    plain = answers(model)
    told = fuse_skip_norms(model)
    assert (told.fused, dict(told.left)) == (2, {"its input is no sum": 1})
    assert kinds(model) == ["LayerNormalization", "MatMul", OPERATOR, "MatMul", OPERATOR]
    for node in model.graph.node:
        if node.op_type == OPERATOR:
            assert (len(node.input), len(node.output)) == (5, 4)  # a bias, and the sum
            epsilon = {a.name: a.f for a in node.attribute}["epsilon"]
            assert epsilon == pytest.approx(0.1)
    onnx.checker.check_model(model)
    agree(answers(model), plain)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("bias", ["", "left", "right"])
def test_a_sum_is_given_out_before_who_reads_it(bias: str, kind: int) -> None:
    model = summed(kind, bias=bias)
    plain = answers(model)
    told = fuse_skip_norms(model)
    assert (told.fused, dict(told.left)) == (1, {})
    assert kinds(model) == [OPERATOR, "Sin"]
    assert len(model.graph.node[0].input) == (5 if bias else 4)
    onnx.checker.check_model(model)
    agree(answers(model), plain, BOUNDS[kind])


def test_a_bias_that_is_read_elsewhere_stays_a_sum() -> None:
    model = summed(bias="right", tapped=True)
    plain = answers(model)
    assert fuse_skip_norms(model).fused == 1
    assert kinds(model) == ["Add", OPERATOR, "Sin"]
    agree(answers(model), plain)


@pytest.mark.parametrize("epsilon", [None, 0.5])
def test_epsilon_is_that_of_the_normalisation(epsilon: float | None) -> None:
    """The operator's own default is another one than that of ONNX."""
    model = summed(**{} if epsilon is None else {"epsilon": epsilon})
    plain = answers(model)
    fuse_skip_norms(model)
    told = {a.name: a.f for a in model.graph.node[0].attribute}
    assert told == {"epsilon": pytest.approx(1e-5 if epsilon is None else epsilon)}
    agree(answers(model), plain)


def test_of_two_normalisations_of_a_sum_one_takes_it_in() -> None:
    model = summed(twice=True)
    plain = answers(model)
    told = fuse_skip_norms(model)
    assert told.fused == 1
    assert dict(told.left) == {"its sum comes out of another one's operator": 1}
    agree(answers(model), plain)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (summed(sizes=((5, 24), (5, 24))), "its input is not (batch, rows, width)"),
        (
            summed(sizes=((2, 5, 24), (1, 5, 24))),
            "its input is no sum of two values of one shape",
        ),
        (summed(sizes=((2, 5, 24), (24,))), "its input is no sum of two values of one shape"),
        (summed(weights=1), "it has no shift"),
        (summed(stash_type=TensorProto.FLOAT16), "its mean is not taken in float32"),
    ],
    ids=["rank 2", "one for the batch", "a bias alone", "no shift", "mean in half"],
)
def test_what_the_operator_does_not_mean_is_left_alone(model: ModelProto, reason: str) -> None:
    before = model.SerializeToString()
    told = fuse_skip_norms(model)
    assert (told.fused, dict(told.left)) == (0, {reason: 1})
    assert model.SerializeToString() == before


def test_another_axis_is_left_alone() -> None:
    model = summed(axis=1)
    for tensor in model.graph.initializer:
        values = np.resize(numpy_helper.to_array(tensor), (5, 24))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert dict(fuse_skip_norms(model).left) == {"it is not over the last axis": 1}


def test_a_scale_that_is_computed_is_left_alone() -> None:
    """Where the sum stands, the scale is not made yet."""
    model = summed()
    scale = helper.make_node("Neg", ["shift"], ["scale"])
    model.graph.node.insert(2, scale)
    del model.graph.initializer[1]
    assert answers(model)
    told = fuse_skip_norms(model)
    assert dict(told.left) == {"its scale or shift is made by another operator": 1}


def test_a_file_is_rewritten_in_place(blocks: Path, tmp_path: Path) -> None:
    path = tmp_path / "blocks.onnx"
    path.write_bytes(blocks.read_bytes())
    told = fuse_skip_norms_file(path)
    assert str(told) == "2 as one operator each; 1 left alone: its input is no sum"
    assert told.as_dict() == {
        "operator": "com.microsoft.SkipLayerNormalization",
        "fused": 2,
        "left": {"its input is no sum": 1},
    }
    assert [each.name for each in tmp_path.iterdir()] == ["blocks.onnx"]
    agree(answers(onnx.load(path)), answers(onnx.load(blocks)))


PASSES: dict[str, Callable[[ModelProto], Any]] = {
    "attention": fuse_attention,
    "group norms": fuse_group_norms,
    "packed attention": fuse_packed_attention,
    "gelus": fuse_gelus,
    "skip norms": fuse_skip_norms,
}


@pytest.mark.parametrize("without", ["nothing", *PASSES])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder", {"attention": 6, "packed attention": 6, "gelus": 7, "skip norms": 12}),
        ("unet", {"attention": 14, "group norms": 30, "gelus": 7, "skip norms": 14}),
    ],
)
def test_every_pass_finds_its_own_after_the_others(
    name: str, expected: dict[str, int], without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one is left out; the toy U-Net's gates are narrower than the kernel's."""
    monkeypatch.setattr(gelu_operator, "GATED_COLUMNS", (256, 512, 768))
    model = onnx.load(REFERENCE / f"{name}.onnx")
    plain = answers(model, 3)
    fused = {each: run(model).fused for each, run in PASSES.items() if each != without}
    expected = {each: count for each, count in expected.items() if each != without}
    if without == "attention":
        expected.pop("packed attention", None)
    assert {each: count for each, count in fused.items() if count} == expected
    agree(answers(gelu_operator.in_parts(group_norms_in_parts(model)), 3), plain)
