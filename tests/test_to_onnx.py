"""The written graphs: their contract, their weights, and that a wrong one is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from scanside.export.parity import ParityError, compare_graph, distance
from scanside.export.to_onnx import OPSET, export_graph
from scanside.export.vit3d import ViT3D

GRAPHS = {
    "encoder": (
        {"tokens": [1, 12, 216]},
        {"clip": [1, 24], "latent": [1, 4, 8, 8], "prefix": [1, 12, 256], "hidden": [1, 13, 64]},
    ),
    "localizer": (
        {"hidden": [1, 13, 64], "concepts": [8, 24]},
        {"relevance": [8, 12], "similarity": [8]},
    ),
    "concept_encoder": ({"input_ids": [1, 24]}, {"concept": [1, 24]}),
    "prompt_encoder": ({"input_ids": [1, 24]}, {"states": [1, 24, 320]}),
    "unet": (
        {
            "sample": [1, 4, 8, 8],
            "time": [1, 128],
            "states": [1, 24, 320],
            "class_labels": [1, 48],
        },
        {"out": [1, 4, 8, 8]},
    ),
    "vae_decoder": ({"latent": [1, 4, 8, 8]}, {"image": [1, 3, 32, 32]}),
}


def shapes(values: object) -> dict[str, list[int]]:
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}  # pyright: ignore


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_keeps_its_contract(tiny_bundle: Path, name: str) -> None:
    model = onnx.load(tiny_bundle / f"{name}.onnx")
    inputs, outputs = GRAPHS[name]
    assert shapes(model.graph.input) == inputs
    assert shapes(model.graph.output) == outputs
    assert [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")] == [OPSET]
    assert {o.domain for o in model.opset_import} <= {"", "ai.onnx"}


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_holds_nothing_of_the_machine_that_made_it(tiny_bundle: Path, name: str) -> None:
    content = (tiny_bundle / f"{name}.onnx").read_bytes()
    for trace in (b"stack_trace", b"site-packages", b".py", str(Path.home()).encode()):
        assert trace not in content


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_of_a_half_precision_checkpoint_are_stored_in_half(
    tiny_bundle: Path, name: str
) -> None:
    model = onnx.load(tiny_bundle / f"{name}.onnx")
    nbytes = {1: 0, 10: 0}
    for tensor in model.graph.initializer:
        if tensor.data_type in nbytes:
            nbytes[tensor.data_type] += numpy_helper.to_array(tensor).nbytes
    assert nbytes[10] > 10 * nbytes[1]


def test_half_storage_changes_no_value_and_leaves_no_cast_at_run_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.half().float())
    x = torch.randn(1, 64)
    path = export_graph(layer, {"x": x}, ["y"], tmp_path / "layer.onnx")
    stored = [t for t in onnx.load(path).graph.initializer if t.data_type == 10]
    assert len(stored) == 1
    np.testing.assert_array_equal(
        numpy_helper.to_array(stored[0]).astype(np.float32), layer.weight.detach().numpy()
    )
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    left = {n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "Cast" not in left


def test_full_precision_weights_stay_full(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export_graph(
        nn.Linear(64, 64), {"x": torch.randn(1, 64)}, ["y"], tmp_path / "layer.onnx"
    )
    assert all(t.data_type == 1 for t in onnx.load(path).graph.initializer)


def test_attention_is_left_in_parts_that_every_backend_takes(tiny_bundle: Path) -> None:
    ops = [n.op_type for n in onnx.load(tiny_bundle / "encoder.onnx").graph.node]
    assert ops.count("Softmax") == 3
    assert ops.count("Gelu") == 6
    assert ops.count("LayerNormalization") == 7
    assert "Attention" not in ops


def test_a_graph_with_a_wrong_weight_fails_the_comparison(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    model = onnx.load(tiny_bundle / "encoder.onnx")
    weight = max(
        (t for t in model.graph.initializer if t.data_type == 10), key=lambda t: len(t.raw_data)
    )
    values = numpy_helper.to_array(weight).copy()
    values.flat[: values.size // 50] *= -1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "encoder.onnx")
    tokens = np.random.default_rng(0).standard_normal((1, 12, 216), np.float32)
    with torch.inference_mode():
        outputs = ViT3D.load(tiny_checkpoint / "encoder")(torch.from_numpy(tokens))
    expected = {n: o.numpy() for n, o in zip(("clip", "latent", "prefix"), outputs, strict=True)}
    assert compare_graph(tiny_bundle / "encoder.onnx", [({"tokens": tokens}, expected)]).trials == 1
    with pytest.raises(ParityError, match=r"encoder\.onnx differs from PyTorch by"):
        compare_graph(tmp_path / "encoder.onnx", [({"tokens": tokens}, expected)])


def test_distance_sees_nan_and_wrong_shapes() -> None:
    want = {"y": np.ones(3, np.float32)}
    assert distance({"y": np.array([1, 1, np.nan])}, want) == (np.inf, np.inf)
    assert distance({"y": np.array([1, 1, 1.5])}, want) == (0.5, 0.5)
    with pytest.raises(ParityError, match="'y' must have shape"):
        distance({"y": np.ones(4)}, want)
