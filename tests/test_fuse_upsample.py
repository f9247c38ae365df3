"""Upsampling and its convolution as one transposed convolution: the same picture, the rest left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from scanside.export.to_onnx import export_graph
from scanside.export.upsample_operator import OPERATOR, fuse_upsamplings, fuse_upsamplings_file
from scanside.runtime.bundle import REFERENCE

from .graph_answers import TYPES, agree, answers, kinds

BOUNDS = {TensorProto.FLOAT: 1e-5, TensorProto.FLOAT16: 4e-3}


class Decoder(nn.Module):
    """Two doublings as decoders have them, and one that no convolution follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 10, 3, padding=1)
        self.second = nn.Conv2d(10, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(2, 6, 5, 7) -> (2, 4, 20, 28), and (2, 4, 40, 56)."""

        def doubled(values: Tensor) -> Tensor:
            return nn.functional.interpolate(values, scale_factor=2.0, mode="nearest")

        x = self.second(doubled(torch.relu(self.first(doubled(x)))))
        return x, doubled(x)


def resized(
    kind: int = TensorProto.FLOAT,
    *,
    by: tuple[int, int] = (2, 2),
    mode: str = "nearest",
    way: tuple[str, str] = ("asymmetric", "floor"),
    tapped: bool = False,
    padded: bool = True,
    then: str = "Conv",
    constant: bool = True,
    **attributes: Any,
) -> ModelProto:
    """A resizing of (1, 3, 4, 5) and a convolution to 2 channels.

    `tapped` gives the larger picture out as well; with `constant` the weights are.
    """
    rng, dtype = np.random.default_rng(1), TYPES[kind]
    shape, larger = [1, 3, 4, 5], [1, 3, 4 * by[0], 5 * by[1]]
    weights = numpy_helper.from_array(rng.standard_normal((2, 3, 3, 3)).astype(dtype), "w")
    constants = [
        weights,
        numpy_helper.from_array(rng.standard_normal(2).astype(dtype), "b"),
        numpy_helper.from_array(np.array([1, 1, *by], np.float32), "scales"),
    ]
    told = {"mode": mode, "coordinate_transformation_mode": way[0], "nearest_mode": way[1]}
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["u"], **told)]
    if then == "Conv":
        reads = ["u", "w" if constant else "given", "b"]
        told = {"pads": [1, 1, 1, 1], **attributes} if padded else attributes
        nodes += [helper.make_node("Conv", reads, ["y"], name="conv", **told)]
    else:
        nodes += [helper.make_node(then, ["u"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    if not constant:
        inputs += [helper.make_tensor_value_info("given", kind, [2, 3, 3, 3])]
    outputs = [helper.make_tensor_value_info("y", kind, [*"nchw"])]
    outputs += [helper.make_tensor_value_info("u", kind, larger)] if tapped else []
    graph = helper.make_graph(nodes, "resized", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_pytorch_exports_is_found_and_means_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Decoder().eval(), torch.randn(2, 6, 5, 7)
    path = export_graph(module, {"x": x}, ["y", "larger"], tmp_path / "decoder.onnx")
    told = fuse_upsamplings_file(path)
    assert (told.fused, dict(told.left)) == (2, {"its inner values are used elsewhere": 1})
    model = onnx.load(path)
    assert kinds(model).count(OPERATOR) == 2
    assert kinds(model).count("Conv") == 0
    seen = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    with torch.inference_mode():
        want = [each.numpy() for each in module(torch.from_numpy(seen))]
    agree(answers(model), want)


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize(
    "way",
    [
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
    ],
    ids="-".join,
)
def test_every_way_to_take_each_pixel_twice(way: tuple[str, str], kind: int) -> None:
    model = resized(kind, way=way)
    want = answers(model)
    assert fuse_upsamplings(model).fused == 1
    assert kinds(model) == [OPERATOR]
    assert [t.data_type for t in model.graph.initializer] == [kind, kind]
    onnx.checker.check_model(model)
    agree(answers(model), want, BOUNDS[kind])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (resized(by=(3, 3)), "it does not double height and width"),
        (resized(by=(2, 1)), "it does not double height and width"),
        (resized(mode="linear"), "it does not take each pixel twice"),
        (resized(way=("asymmetric", "ceil")), "it does not take each pixel twice"),
        (resized(way=("align_corners", "floor")), "it does not take each pixel twice"),
        (resized(tapped=True), "its inner values are used elsewhere"),
        (resized(then="Relu"), "no plain convolution of 3 x 3 follows"),
        (resized(padded=False), "no plain convolution of 3 x 3 follows"),
        (resized(pads=[0, 0, 0, 0]), "no plain convolution of 3 x 3 follows"),
        (resized(strides=[2, 2]), "no plain convolution of 3 x 3 follows"),
        (resized(dilations=[2, 2]), "no plain convolution of 3 x 3 follows"),
        (resized(constant=False), "the weights behind it are not constants of 3 x 3"),
    ],
)
def test_what_it_does_not_mean_is_left_alone(model: ModelProto, reason: str) -> None:
    before = model.SerializeToString()
    told = fuse_upsamplings(model)
    assert (told.fused, dict(told.left)) == (0, {reason: 1})
    assert model.SerializeToString() == before


@pytest.mark.parametrize("name", ["unet", "vae_decoder"])
def test_the_reference_graphs_give_the_same_answers(name: str) -> None:
    model = onnx.load(REFERENCE / f"{name}.onnx")
    doublings = kinds(model).count("Resize")
    want = answers(model, 3)
    told = fuse_upsamplings(model)
    assert (told.fused, dict(told.left)) == (doublings, {})
    assert kinds(model).count(OPERATOR) == doublings > 1
    assert "Resize" not in kinds(model)
    assert {opset.domain for opset in model.opset_import} == {""}
    agree(answers(model, 3), want)


def test_weights_beside_the_graph_are_read_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "resized.onnx"
    model = resized(TensorProto.FLOAT16)
    want = answers(model)
    external: dict[str, Any] = {"save_as_external_data": True, "location": "weights.data"}
    onnx.save(model, path, size_threshold=64, **external)
    kept = (tmp_path / "weights.data").read_bytes()
    assert fuse_upsamplings_file(path).fused == 1
    assert (tmp_path / "weights.data").read_bytes() == kept
    agree(answers(onnx.load(path)), want, BOUNDS[TensorProto.FLOAT16])
