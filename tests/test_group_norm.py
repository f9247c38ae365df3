"""Group normalisation as one operator means what its parts do; only a GPU can run it.

ONNX Runtime's CPU provider does not have the operator, so standard ones take its place here, and
those are held against PyTorch's own group normalisation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from scanside.export.attention_operator import fuse_attention
from scanside.export.group_norm_operator import OPERATOR, fuse_group_norm_file, fuse_group_norms
from scanside.export.group_norm_parts import in_parts
from scanside.runtime.bundle import REFERENCE
from scanside.runtime.engines.graph_file import GraphFile
from scanside.runtime.engines.onnx_cpu import OnnxEngine
from scanside.runtime.errors import BundleError

from .graph_answers import TYPES, answers


def normalised(
    channels: int = 12,
    groups: int = 3,
    kind: int = TensorProto.FLOAT,
    *,
    silu: bool = True,
    shared: bool = False,
    scaled: float = 1.0,
) -> ModelProto:
    """A group normalisation of (2, channels, 5, 7) as the exporter writes it.

    `shared` gives the value before the SiLU out, too; `scaled` is the inner normalisation's scale.
    """
    rng = np.random.default_rng(1)
    shape, dtype = [2, channels, 5, 7], TYPES[kind]

    def constant(name: str, values: Any) -> TensorProto:
        return numpy_helper.from_array(np.asarray(values), name)

    constants = [
        constant("split", np.array([2, groups, -1])),
        constant("whole", np.array(shape)),
        constant("ones", np.full(groups, scaled, dtype)),
        constant("zeros", np.zeros(groups, dtype)),
        constant("scale", rng.standard_normal((channels, 1, 1)).astype(dtype)),
        constant("shift", rng.standard_normal((channels, 1, 1)).astype(dtype)),
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "split"], ["rows"]),
        helper.make_node("InstanceNormalization", ["rows", "ones", "zeros"], ["n"], epsilon=1e-3),
        helper.make_node("Reshape", ["n", "whole"], ["joined"]),
        helper.make_node("Mul", ["joined", "scale"], ["m"]),
        helper.make_node("Add", ["m", "shift"], ["a"]),
    ]
    if silu:
        nodes += [
            helper.make_node("Sigmoid", ["a"], ["s"]),
            helper.make_node("Mul", ["a", "s"], ["y"]),
        ]
    outputs = [helper.make_tensor_value_info("y" if silu else "a", kind, shape)]
    outputs += [helper.make_tensor_value_info("a", kind, shape)] if shared else []
    given = [helper.make_tensor_value_info("x", kind, shape)]
    graph = helper.make_graph(nodes, "norm", given, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_operator_means_what_pytorch_computes(silu: bool, kind: int) -> None:
    model = normalised(kind=kind, silu=silu)
    found = fuse_group_norms(model)
    assert (found.fused, found.with_silu, dict(found.left)) == (1, int(silu), {})
    assert [node.op_type for node in model.graph.node] == ["Transpose", OPERATOR, "Transpose"]
    told = {a.name: helper.get_attribute_value(a) for a in model.graph.node[1].attribute}
    assert told == {
        "groups": 3,
        "epsilon": pytest.approx(1e-3),
        "activation": int(silu),
        "channels_last": 1,
    }
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert {values.dtype for values in constants.values()} == {np.dtype(np.float32)}
    onnx.checker.check_model(model)
    (got,) = answers(in_parts(model))
    x = np.random.default_rng(0).standard_normal((2, 12, 5, 7)).astype(TYPES[kind])
    scale, shift = (constants[f"group_norm_0.{part}"] for part in ("scale", "shift"))
    given = [torch.from_numpy(values.astype(np.float32)) for values in (x, scale, shift)]
    want = torch.nn.functional.group_norm(given[0], 3, *given[1:], eps=1e-3)
    want = (torch.nn.functional.silu(want) if silu else want).numpy()
    assert got.dtype == TYPES[kind]
    # float16 rounds the result once, to 11 bits
    bound = {TensorProto.FLOAT: 1e-6, TensorProto.FLOAT16: 6e-4}[kind]
    assert np.abs(got - want).max() <= bound * np.abs(want).max()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (normalised(channels=9, groups=3), "its groups have 3 channels"),
        (normalised(channels=1028, groups=2), "its groups have 514 channels"),
        (normalised(scaled=2.0), "its instance normalisation scales or shifts"),
    ],
    ids=["odd groups", "wide groups", "a scale of its own"],
)
def test_what_the_kernel_does_not_take_is_left_alone(model: ModelProto, reason: str) -> None:
    before = model.SerializeToString()
    found = fuse_group_norms(model)
    assert (found.fused, dict(found.left)) == (0, {reason: 1})
    assert model.SerializeToString() == before


def test_a_silu_whose_input_is_read_elsewhere_stays_outside() -> None:
    model = normalised(shared=True)
    plain = answers(model)
    found = fuse_group_norms(model)
    assert (found.fused, found.with_silu) == (1, 0)
    for got, want in zip(answers(in_parts(model)), plain, strict=True):
        assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("name", ["unet", "vae_decoder"])
def test_the_reference_graphs_give_the_same_answers(name: str) -> None:
    path = REFERENCE / f"{name}.onnx"
    model = onnx.load(path)
    before = len(model.graph.node)
    norms = [node.op_type for node in model.graph.node].count("InstanceNormalization")
    plain = answers(model, 3)
    found = fuse_group_norms(model)
    kinds = [node.op_type for node in model.graph.node]
    assert found.fused + sum(found.left.values()) == norms > 10
    assert kinds.count(OPERATOR) == found.fused == norms
    assert found.with_silu > norms / 2
    # five nodes become three, seven with their SiLU
    assert len(kinds) == before - 2 * found.fused - 2 * found.with_silu
    for got, want in zip(answers(in_parts(model), 3), plain, strict=True):
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("first", ["norms", "attention"])
def test_attention_is_found_beside_it_and_memory_is_still_counted(
    first: str, tmp_path: Path
) -> None:
    model = onnx.load(REFERENCE / "unet.onnx")
    norms = fuse_group_norms(model) if first == "norms" else None
    attention = fuse_attention(model)
    norms = norms or fuse_group_norms(model)
    assert (attention.fused, dict(attention.left)) == (14, {})
    assert norms.fused > 20
    assert not norms.left
    onnx.save(model, tmp_path / "unet.onnx")
    plain, fused = (GraphFile.read(folder / "unet.onnx") for folder in (REFERENCE, tmp_path))
    assert fused.activation_bytes >= plain.activation_bytes / 2
    assert fused.weights_bytes == pytest.approx(plain.weights_bytes, rel=0.01)


def test_a_file_keeps_its_weights_beside_it(tmp_path: Path) -> None:
    """Numbers of the channels are read from the weights' file, and the others stay there."""
    path = tmp_path / "norm.onnx"
    model = normalised(64, 4, TensorProto.FLOAT16)
    plain = answers(model)
    external: dict[str, Any] = {"save_as_external_data": True, "location": "norm.data"}
    onnx.save(model, path, size_threshold=100, **external)
    outside = [
        t.name
        for t in onnx.load(path, load_external_data=False).graph.initializer
        if t.data_location == TensorProto.EXTERNAL
    ]
    assert outside == ["scale", "shift"]
    assert fuse_group_norm_file(path).fused == 1
    onnx.save(in_parts(onnx.load(path)), tmp_path / "parts.onnx")
    got = answers(onnx.load(tmp_path / "parts.onnx"))
    assert np.abs(got[0] - plain[0]).max() <= 2e-3 * np.abs(plain[0]).max()


def test_on_the_cpu_such_a_graph_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = normalised()
    fuse_group_norms(model)
    onnx.save(model, tmp_path / "vae.onnx")
    with pytest.raises(BundleError, match=r"GroupNorm.*only on a GPU; write vae_decoder=cuda"):
        OnnxEngine("vae_decoder", tmp_path / "vae.onnx", 1)
