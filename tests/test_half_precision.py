"""What half precision may compute, decided by numbers; and that the proof of it is a real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from scanside.export.compile_graph import compile_graph
from scanside.export.half_precision import HalfPlan, emulate_half, plan_half, to_half
from scanside.export.parity import ParityError
from scanside.export.ranges import largest_values
from scanside.export.to_onnx import export_graph


class Chain(nn.Module):
    """Grows by `gain` between two plain layers, with a norm and a sine on the way."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.gain = gain

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        grown = self.first(x) * self.gain
        return self.last(self.norm(grown)) + torch.sin(time * 0.5)


def exported(folder: Path, gain: float) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((4, 8), np.float32), "time": np.full((1,), 900.3, np.float32)}
    example = {name: torch.from_numpy(a) for name, a in feeds.items()}
    return export_graph(Chain(gain), example, ["y"], folder / "chain.onnx"), feeds


def planned(path: Path, feeds: dict[str, np.ndarray]) -> tuple[ir.Model, HalfPlan]:
    model = ir.load(path)
    return model, plan_half(model, largest_values(path, [feeds]))


def kinds(plan: HalfPlan, reason: str) -> set[str]:
    return {node.op_type for node in plan.kept.get(reason, [])}


def answer(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


CHAIN = """
import resource, sys
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper, save, shape_inference
from scanside.export.ranges import largest_values

wide, many = 1 << 22, 64  # 64 tensors of 16 MiB
value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [wide]) for n in ("x0", f"x{many}")]
nodes = [helper.make_node("Neg", [f"x{i}"], [f"x{i + 1}"]) for i in range(many)]
graph = helper.make_graph(nodes, "chain", value[:1], value[1:])
opset = [helper.make_opsetid("", 20)]
model = helper.make_model(graph, opset_imports=opset, ir_version=10)
save(shape_inference.infer_shapes(model), sys.argv[1])
x = np.linspace(-3, 2, wide, dtype=np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = largest_values(Path(sys.argv[1]), [{"x0": x}])
assert set(found.values()) == {3.0} and len(found) == many, found
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_no_tensor_is_kept_until_the_end(tmp_path: Path) -> None:
    """All tensors of a full-size VAE at once are 12 GB."""
    words = [sys.executable, "-P", "-c", CHAIN, str(tmp_path / "chain.onnx")]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64 * 16 / 3


def test_ranges_are_the_largest_values_over_all_inputs(tmp_path: Path) -> None:
    path, feeds = exported(tmp_path, 3.0)
    before = path.read_bytes()
    twice = largest_values(path, [feeds, feeds | {"x": 5 * feeds["x"]}])
    module = Chain(3.0)
    grown = (module.first(torch.from_numpy(5 * feeds["x"])) * 3.0).detach()
    assert max(twice.values()) == pytest.approx(
        max(float(grown.abs().max()), 900.3 * 0.5), rel=1e-5
    )
    assert any(v == pytest.approx(float(grown.abs().max()), rel=1e-5) for v in twice.values())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["chain.onnx"]


def test_small_numbers_are_all_half_but_for_the_sine(tmp_path: Path) -> None:
    _, plan = planned(*exported(tmp_path, 1.0))
    assert kinds(plan, "range") == kinds(plan, "square") == set()
    assert "Sin" in kinds(plan, "phase")
    assert {"Gemm", "LayerNormalization"} & {node.op_type for node in plan.half}


def test_a_norm_of_large_numbers_stays_float32(tmp_path: Path) -> None:
    """Its square overflows long before the number itself does."""
    _, plan = planned(*exported(tmp_path, 200.0))
    assert kinds(plan, "square") == {"LayerNormalization"}
    assert kinds(plan, "range") == set()


def test_numbers_near_the_end_of_half_precision_stay_float32(tmp_path: Path) -> None:
    path, feeds = exported(tmp_path, 1e5)
    model, plan = planned(path, feeds)
    assert "LayerNormalization" in kinds(plan, "range")
    assert plan.largest > 65504 > plan.largest_half * 4
    to_half(model, plan)
    ir.save(model, tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    np.testing.assert_allclose(
        answer(tmp_path / "half.onnx", feeds), answer(path, feeds), atol=5e-3
    )


def test_a_half_graph_keeps_its_contract_and_halves_its_weights(tmp_path: Path) -> None:
    path, feeds = exported(tmp_path, 1.0)
    model, plan = planned(path, feeds)
    to_half(model, plan)
    ir.save(model, tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    session = ort.InferenceSession(tmp_path / "half.onnx", providers=["CPUExecutionProvider"])
    tensors = [*session.get_inputs(), *session.get_outputs()]
    assert {(t.name, t.type) for t in tensors} == {
        (name, "tensor(float)") for name in ("x", "time", "y")
    }
    weights = onnx.load(tmp_path / "half.onnx").graph.initializer
    matrices = [w for w in weights if len(w.dims) == 2]
    assert matrices
    assert all(w.data_type == onnx.TensorProto.FLOAT16 for w in matrices)


def test_emulation_rounds_as_half_precision_does(tmp_path: Path) -> None:
    """One addition, against numpy's own float16."""

    class Add(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    rng = np.random.default_rng(0)
    feeds = {name: 30 * rng.standard_normal(5000, np.float32) for name in "ab"}
    example = {name: torch.from_numpy(a) for name, a in feeds.items()}
    path = export_graph(Add(), example, ["y"], tmp_path / "add.onnx")
    model, plan = planned(path, feeds)
    emulate_half(model, plan)
    ir.save(model, tmp_path / "emulated.onnx")
    half = {name: a.astype(np.float16) for name, a in feeds.items()}
    wanted = (half["a"] + half["b"]).astype(np.float32)
    normal = np.abs(wanted) > 6.2e-5
    assert normal.mean() > 0.99
    found = answer(tmp_path / "emulated.onnx", feeds)
    np.testing.assert_array_equal(found[normal], wanted[normal])
    assert np.abs(wanted - answer(path, feeds)).max() > 0


def test_an_emulated_graph_holds_every_weight_once(tmp_path: Path) -> None:
    model, plan = planned(*exported(tmp_path, 1.0))
    emulate_half(model, plan)
    assert all(value.uses() for value in model.graph.initializers.values())
    held = sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value)
    wanted = sum(parameter.numel() for parameter in Chain(1.0).parameters())
    assert wanted <= held < wanted + 20  # a handful of constants beside the weights


def test_weights_that_are_stored_in_half_are_not_rounded_again(tmp_path: Path) -> None:
    """Full-size ones would be in memory three times more while ONNX Runtime folds it all."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.half().float())
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 32), np.float32)}
    path = export_graph(layer, {"x": torch.from_numpy(feeds["x"])}, ["y"], tmp_path / "layer.onnx")
    model, plan = planned(path, feeds)
    emulate_half(model, plan)
    stored = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT16]
    assert [v.shape for v in stored] == [ir.Shape((32, 32))]
    ((widened, _),) = stored[0].uses()
    users = {use.node.op_type for use in widened.outputs[0].uses()}
    assert users <= {"Gemm", "MatMul", "Transpose"}
    ir.save(model, tmp_path / "emulated.onnx")
    x, weight = (torch.from_numpy(feeds["x"]).half().double(), layer.weight.double())
    bias = layer.bias.half().double()
    wanted = (x @ weight.T + bias).half().double().detach().numpy()
    found = answer(tmp_path / "emulated.onnx", feeds)
    assert np.abs(found - wanted).max() <= 2**-11 * np.abs(wanted).max()


def test_a_graph_that_half_precision_spoils_is_refused(tmp_path: Path) -> None:
    """A small difference of large numbers: every number fits, and the answer is lost."""

    class Cancels(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 4000) - 4000

    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 8), np.float32)
    trials = [({"x": x}, {"y": (x + np.float32(4000)) - np.float32(4000)})]
    with pytest.raises(ParityError, match="emulated.onnx differs from PyTorch"):
        compile_graph(Cancels(), ["y"], tmp_path / "c.onnx", trials, "fp16")
    done = compile_graph(Cancels(), ["y"], tmp_path / "c.onnx", trials, "fp32")
    assert done.ranges is None


def test_a_compiled_half_graph_reports_what_it_kept(tmp_path: Path) -> None:
    path, feeds = exported(tmp_path, 200.0)
    trials = [(feeds, {"y": answer(path, feeds)})]
    done = compile_graph(Chain(200.0), ["y"], tmp_path / "half.onnx", trials, "fp16")
    assert done.precision == "fp16"
    assert 1e-6 < done.parity.relative < 1e-2
    assert done.ranges is not None
    assert done.ranges["nodes_kept"]["square"] == {"LayerNormalization": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chain.onnx", "half.onnx"]
