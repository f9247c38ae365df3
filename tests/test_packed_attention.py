"""Self-attention with its projections as one operator: same answers, and the rest left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from scanside.export.attention_operator import OPERATOR as UNPACKED
from scanside.export.attention_operator import fuse_attention
from scanside.export.packed_attention_operator import (
    OPERATOR,
    fuse_packed_attention,
    fuse_packed_attention_file,
)
from scanside.export.to_onnx import export_graph
from scanside.runtime.bundle import REFERENCE

from .graph_answers import TYPES, agree, answers, kinds

ELSEWHERE = "its inner values are used elsewhere"


class SelfAttention(nn.Module):
    """Four heads of 8 with a scale of their own, on rows of 24 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(24, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(2, 5, 24) -> (2, 5, 32)."""
        q, k, v = (
            project(x).view(2, 5, 4, 8).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.9)
        return mixed.transpose(1, 2).reshape(2, 5, 32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """The graph, and PyTorch's answer to what `answers` asks."""
    torch.manual_seed(0)
    module = SelfAttention()
    x = np.random.default_rng(0).standard_normal((2, 5, 24)).astype(np.float32)
    path = tmp_path_factory.mktemp("attention") / "attention.onnx"
    export_graph(module, {"x": torch.from_numpy(x)}, ["y"], path)
    with torch.no_grad():
        return path, module(torch.from_numpy(x)).numpy()


def attended(
    kind: int = TensorProto.FLOAT,
    *,
    sources: str = "xxx",
    biased: str = "qkv",
    first: str = "product",
    value_width: int = 32,
    tapped: str = "",
    **attributes: Any,
) -> ModelProto:
    """Attention of (2, 5, 24) values by MultiHeadAttention, four heads.

    `sources` names what query, key and value are made of, `biased` those with a bias, `first` what
    of the sum with it stands first, `tapped` an inner value that is given out.
    """
    rng, dtype = np.random.default_rng(1), TYPES[kind]
    nodes, constants = [], []
    widths = {"q": 32, "k": 32, "v": value_width}
    for name, source in zip("qkv", sources, strict=True):
        weights = rng.standard_normal((24, widths[name])).astype(dtype) / 5
        bias = rng.standard_normal(widths[name]).astype(dtype)
        constants += [
            numpy_helper.from_array(weights, f"W{name}"),
            numpy_helper.from_array(bias, f"b{name}"),
        ]
        product = f"p{name}" if name in biased else name
        nodes.append(helper.make_node("MatMul", [source, f"W{name}"], [product]))
        if name in biased:
            summands = [product, f"b{name}"]
            summands = summands if first == "product" else summands[::-1]
            nodes.append(helper.make_node("Add", summands, [name]))
    attributes = {"num_heads": 4, **attributes}
    nodes.append(
        helper.make_node(UNPACKED, list("qkv"), ["y"], domain="com.microsoft", **attributes)
    )
    given = [helper.make_tensor_value_info(name, kind, (2, 5, 24)) for name in sorted(set(sources))]
    out = [helper.make_tensor_value_info("y", kind, (2, 5, value_width))]
    if tapped:
        out.append(helper.make_tensor_value_info(tapped, kind, (2, 5, 32)))
    graph = helper.make_graph(nodes, "attention", given, out, constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_it_gives_what_pytorch_computes(exported: tuple[Path, np.ndarray]) -> None:
    path, want = exported
    model = onnx.load(path)
    assert fuse_attention(model).fused == 1
    told = fuse_packed_attention(model)
    assert (told.fused, dict(told.left)) == (1, {})
    assert kinds(model) == [OPERATOR]
    attributes = {a.name: helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    assert attributes == {"num_heads": 4, "scale": pytest.approx(0.9)}
    assert {tuple(t.dims) for t in model.graph.initializer} == {(24, 96), (96,)}
    onnx.checker.check_model(model)
    agree(answers(model), [want])


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("scale", [{}, {"scale": 0.2}, {"scale": 1.0}])
@pytest.mark.parametrize("first", ["product", "bias"])
def test_scale_and_layout_are_those_of_the_other_operator(
    first: str, scale: dict[str, float], kind: int
) -> None:
    model = attended(kind, first=first, **scale)
    plain = answers(model)
    assert fuse_packed_attention(model).fused == 1
    assert kinds(model) == [OPERATOR]
    agree(answers(model), plain, {TensorProto.FLOAT: 1e-5, TensorProto.FLOAT16: 4e-3}[kind])


def test_the_scale_matters() -> None:
    """So the comparison above can fail."""
    (one,), (other,) = answers(attended(scale=0.2)), answers(attended(scale=1.0))
    assert np.abs(one - other).max() > 0.1 * np.abs(one).max()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (attended(sources="xzz"), "query, key and value are not projections of one value"),
        (attended(biased="qv"), "a projection has no bias"),
        (attended(biased=""), "a projection has no bias"),
        (attended(value_width=64), "query, key and value are not of one width"),
        (attended(tapped="k"), ELSEWHERE),
        (attended(tapped="pk"), ELSEWHERE),
        (attended(unidirectional=1), "it has a mask or a form of its own"),
    ],
    ids=["cross", "one unbiased", "unbiased", "wide values", "key read", "product read", "causal"],
)
def test_what_the_operator_does_not_mean_is_left_alone(model: ModelProto, reason: str) -> None:
    before = model.SerializeToString()
    assert answers(model)
    told = fuse_packed_attention(model)
    assert (told.fused, dict(told.left)) == (0, {reason: 1})
    assert model.SerializeToString() == before


def test_weights_beside_a_file_are_read_and_stay(
    exported: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, weights = tmp_path / "attention.onnx", tmp_path / "attention.data"
    model = attended()
    plain = answers(model)
    external: dict[str, Any] = {"save_as_external_data": True, "location": weights.name}
    onnx.save(model, path, size_threshold=1000, **external)
    stored = weights.read_bytes()
    bare = onnx.load(path, load_external_data=False)
    assert dict(fuse_packed_attention(bare).left) == {"its weights are not at hand": 1}
    told = fuse_packed_attention_file(path)
    assert str(told) == "1 as one operator each"
    assert told.as_dict() == {"operator": "com.microsoft.Attention", "fused": 1, "left": {}}
    assert weights.read_bytes() == stored
    assert sorted(each.name for each in tmp_path.iterdir()) == [weights.name, path.name]
    agree(answers(onnx.load(path)), plain)


def test_the_reference_graphs() -> None:
    """The encoder's weights are stored in half the bytes; the U-Net's projections have no bias."""
    model = onnx.load(REFERENCE / "encoder.onnx")
    plain = answers(model, 3)
    fuse_attention(model)
    assert fuse_packed_attention(model).fused == 6
    assert UNPACKED not in kinds(model)
    agree(answers(model, 3), plain)
    model = onnx.load(REFERENCE / "unet.onnx")
    fuse_attention(model)
    told = fuse_packed_attention(model)
    assert (told.fused, dict(told.left)) == (0, {"a projection has no bias": 14})
