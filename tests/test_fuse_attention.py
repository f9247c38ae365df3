"""Attention as one operator: the same answers, fewer nodes, and graphs without it left alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from scanside.export.attention_operator import DOMAIN, OPERATOR, fuse_attention
from scanside.export.bundle_writer import export_bundle
from scanside.runtime import Decoder
from scanside.runtime.bundle import REFERENCE, Bundle
from scanside.runtime.devices import stage_devices
from scanside.runtime.errors import InputError
from scanside.runtime.verification import verify


def answers(path: Path, seed: int) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feeds = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
    return session.run(None, feeds)


@pytest.mark.parametrize(("name", "attentions"), [("unet", 14), ("encoder", 6)])
def test_the_operator_gives_the_answers_of_its_parts(
    name: str, attentions: int, tmp_path: Path
) -> None:
    plain = REFERENCE / f"{name}.onnx"
    model = onnx.load(plain)
    before = len(model.graph.node)
    found = fuse_attention(model)
    assert (found.fused, dict(found.left)) == (attentions, {})
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count(OPERATOR) == attentions
    assert "Softmax" not in kinds
    assert len(kinds) <= before - 8 * attentions
    onnx.save(model, tmp_path / "fused.onnx")
    for got, want in zip(answers(tmp_path / "fused.onnx", 3), answers(plain, 3), strict=True):
        assert np.abs(got - want).max() <= 2e-6 * np.abs(want).max()


def test_a_mask_and_a_missing_attention_leave_the_graph_as_it_is() -> None:
    for name, left in (
        ("prompt_encoder", {"it has a mask": 3}),
        ("vae_decoder", {}),
    ):
        model = onnx.load(REFERENCE / f"{name}.onnx")
        before = model.SerializeToString()
        found = fuse_attention(model)
        assert (found.fused, dict(found.left)) == (0, left)
        assert model.SerializeToString() == before


def test_heads_in_another_order_are_no_attention() -> None:
    """The same operators, but rows and heads are exchanged before the product."""
    shape = [1, 8, 64]

    def heads(name: str, order: list[int]) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Reshape", [name, "split"], [f"{name}4"]),
            helper.make_node("Transpose", [f"{name}4"], [f"{name}h"], perm=order),
        ]

    nodes = [
        *heads("q", [0, 1, 2, 3]),
        *heads("k", [0, 1, 3, 2]),
        *heads("v", [0, 1, 2, 3]),
        helper.make_node("MatMul", ["qh", "kh"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "vh"], ["mixed"]),
        helper.make_node("Reshape", ["mixed", "join"], ["out"]),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("q", "k", "v")]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    sizes = [
        helper.make_tensor("split", TensorProto.INT64, [4], [1, 8, 4, 16]),
        helper.make_tensor("join", TensorProto.INT64, [3], shape),
    ]
    graph = helper.make_graph(nodes, "rows", value, [out], sizes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    found = fuse_attention(model)
    assert (found.fused, sum(found.left.values())) == (0, 1)


def test_such_a_bundle_verifies_and_says_what_was_done(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", fuse="attention")
    checks = verify(Bundle.open(bundle), stage_devices("cpu"), 1)
    assert all(check.passed for check in checks)
    told = json.loads((bundle / "manifest.json").read_text())["fused"]
    for name in ("encoder.onnx", "unet.onnx"):
        kinds = [node.op_type for node in onnx.load(bundle / name).graph.node]
        assert kinds.count(OPERATOR) == told[name]["attention"]["fused"] > 0
        assert told[name]["attention"]["operator"] == f"{DOMAIN}.{OPERATOR}"
        assert told[name]["relative"] < 1e-5
    with Decoder.open(bundle) as decoder:
        assert decoder.stages.placement["encoder"] == "CPUExecutionProvider"


def test_rtx_is_not_given_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exclude each other"):
        export_bundle("random:tiny", tmp_path / "b", targets=["rtx"], fuse="attention")
    assert not (tmp_path / "b").exists()
