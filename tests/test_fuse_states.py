"""Slices that together are one value as Splits: the same answers, and the rest left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from scanside.export.states_operator import fuse_states, fuse_states_file
from scanside.export.to_onnx import export_graph
from scanside.runtime.bundle import REFERENCE

TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def answers(model: ModelProto, seed: int = 0) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    feeds = {
        i.name: rng.standard_normal(i.shape).astype(kinds[i.type]) for i in session.get_inputs()
    }
    return session.run(None, feeds)


def sliced(
    *bounds: tuple[int, int],
    kind: int = TensorProto.FLOAT,
    width: int = 24,
    axis: int = 2,
    step: int | None = 1,
    computed: bool = False,
) -> ModelProto:
    """Slices of (2, 5, width) from start to stop, each given out by the sine of it."""
    constants, nodes, outputs = [], [], []
    for number, (start, stop) in enumerate(bounds):
        told = {"start": start, "stop": stop, "axis": axis, **({"step": step} if step else {})}
        names = [f"{part}{number}" for part in told]
        constants += [
            numpy_helper.from_array(np.array([value]), name)
            for name, value in zip(names, told.values(), strict=True)
        ]
        nodes.append(helper.make_node("Slice", ["x", *names], [f"part{number}"]))
        nodes.append(helper.make_node("Sin", [f"part{number}"], [f"sine{number}"]))
        outputs.append(helper.make_tensor_value_info(f"sine{number}", kind, [None] * 3))
    if computed:
        stop = constants.pop(1)
        constants.append(numpy_helper.from_array(numpy_helper.to_array(stop) * -1, "negative"))
        nodes.insert(0, helper.make_node("Neg", ["negative"], [stop.name]))
    given = [helper.make_tensor_value_info("x", kind, (2, 5, width))]
    graph = helper.make_graph(nodes, "slices", given, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def agree(model: ModelProto, plain: list[np.ndarray]) -> None:
    """They are copies: nothing may differ."""
    onnx.checker.check_model(model)
    for got, want in zip(answers(model), plain, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([(0, 8), (8, 16), (16, 24)], {"Split": 1}),
        ([(16, 24), (0, 8), (8, 16)], {"Split": 1}),
        ([(0, 12), (-12, 2**62)], {"Split": 1}),
        ([(0, 4), (4, 8), (8, 16), (16, 24)], {"Split": 2, "Slice": 2}),
        ([(4, 14), (14, 24), (0, 4)], {"Split": 1, "Slice": 2}),
        ([(0, 6), (6, 9), (9, 12), (12, 18), (18, 24)], {"Split": 2, "Slice": 3}),
    ],
    ids=["equal", "in another order", "from the end", "two widths", "one alone", "it comes back"],
)
def test_slices_that_cover_a_value_are_splits(
    bounds: list[tuple[int, int]], expected: dict[str, int], kind: int
) -> None:
    model = sliced(*bounds, kind=kind)
    plain = answers(model)
    told = fuse_states(model)
    assert (told.fused, dict(told.left)) == (len(bounds), {})
    assert kinds(model) == {**expected, "Sin": len(bounds)}
    for node in model.graph.node:
        if node.op_type == "Split":  # as many widths as the kernel takes without the host's memory
            sizes = next(t for t in model.graph.initializer if t.name == node.input[1])
            assert len(set(numpy_helper.to_array(sizes).tolist())) == 1
    agree(model, plain)


def test_a_split_has_no_more_parts_than_the_kernel_takes() -> None:
    model = sliced(*((at, at + 1) for at in range(40)), width=40)
    plain = answers(model)
    assert fuse_states(model).fused == 40
    assert [len(n.output) for n in model.graph.node if n.op_type == "Split"] == [32, 8]
    agree(model, plain)


def test_the_other_axis_and_a_missing_step_are_understood() -> None:
    model = sliced((0, 12), (12, 24), axis=-1, step=None)
    plain = answers(model)
    assert fuse_states(model).fused == 2
    agree(model, plain)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (sliced((0, 8), (8, 16)), "the slices of its input do not cover it once"),
        (sliced((0, 8), (16, 24)), "the slices of its input do not cover it once"),
        (sliced((0, 16), (8, 24)), "the slices of its input do not cover it once"),
        (sliced((0, 12), (0, 12), (12, 24)), "the slices of its input do not cover it once"),
        (sliced((0, 8), (8, 24)), "no two slices of one width follow each other"),
        (sliced((0, 24)), "no two slices of one width follow each other"),
        (sliced((0, 12), (12, 24), step=2), "it is not of columns next to each other"),
        (sliced((0, 2), (2, 5), axis=1), "it is not of columns next to each other"),
        (sliced((0, 12), (12, 24), computed=True), "it is not of one axis, from here to there"),
        (sliced((0, 12), (30, 40)), "it is empty"),
    ],
    ids=[
        "one missing",
        "a gap",
        "an overlap",
        "one twice",
        "all of other widths",
        "one alone",
        "every other column",
        "another axis",
        "a computed end",
        "behind the end",
    ],
)
def test_what_does_not_cover_a_value_is_left_alone(model: ModelProto, reason: str) -> None:
    before = model.SerializeToString()
    count = kinds(model)["Slice"]
    told = fuse_states(model)
    assert (told.fused, dict(told.left)) == (0, {reason: count})
    assert model.SerializeToString() == before


def test_who_reads_the_whole_value_still_does() -> None:
    model = sliced((0, 12), (12, 24))
    model.graph.node.append(helper.make_node("Neg", ["x"], ["whole"]))
    model.graph.output.append(helper.make_tensor_value_info("whole", TensorProto.FLOAT, [None] * 3))
    plain = answers(model)
    assert fuse_states(model).fused == 2
    agree(model, plain)


class States(nn.Module):
    """Layers that read their part of one input each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 6) for width in (8, 8, 4, 4))

    def forward(self, states: Tensor) -> Tensor:
        """(2, 5, 24) -> (2, 5, 6)."""
        parts = (states[..., :8], states[..., 8:16], states[..., 16:20], states[..., 20:])
        read = [layer(part) for layer, part in zip(self.layers, parts, strict=True)]
        return read[0] + read[1] * read[2] - read[3]


def test_an_exported_file_is_rewritten_in_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export_graph(
        States(), {"states": torch.randn(2, 5, 24)}, ["y"], tmp_path / "states.onnx"
    )
    plain = answers(onnx.load(path))
    told = fuse_states_file(path)
    assert str(told) == "4 as one operator each"
    assert told.as_dict() == {"operator": "Split", "fused": 4, "left": {}}
    model = onnx.load(path)
    assert (kinds(model)["Slice"], kinds(model)["Split"]) == (2, 2)
    agree(model, plain)
    assert [each.name for each in tmp_path.iterdir()] == ["states.onnx"]


def test_the_reference_unet_gives_the_same_answers() -> None:
    model = onnx.load(REFERENCE / "unet.onnx")
    plain = answers(model, 0)
    before = kinds(model)
    told = fuse_states(model)
    assert (told.fused, dict(told.left)) == (before["Slice"], {})
    # four runs of equal width
    assert kinds(model)["Slice"] == kinds(model)["Split"] - before["Split"] == 4
    agree(model, plain)
