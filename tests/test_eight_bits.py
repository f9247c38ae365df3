"""Products with weights in 8 bits: what is changed, what is not, and how far it is from PyTorch."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

from scanside.export import to_onnx
from scanside.export.bundle_writer import export_bundle
from scanside.export.compile_graph import RELATIVE_INT8, compile_graph
from scanside.export.parity import ParityError
from scanside.runtime.cli import main


class Layer(nn.Module):
    """Attention and a perceptron: products with weights, and products of activations."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(64)
        self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)
        if half:  # exact in half precision, so that they are stored so
            for parameter in self.parameters():
                parameter.data = parameter.data.half().float()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 64) float -> (B, T, 64) float."""
        h = self.norm(x)
        weights = (self.q(h) @ self.k(h).transpose(1, 2) / 8).softmax(-1)
        return x + self.down(F.gelu(self.up(h + weights @ self.v(h))))


def compiled(path: Path, half: bool = False):
    module = Layer(half).eval()
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(3):
        x = rng.standard_normal((1, 12, 64), np.float32)
        with torch.inference_mode():
            trials.append(({"x": x}, {"y": module(torch.from_numpy(x)).numpy()}))
    return compile_graph(module, ["y"], path, trials, "int8")


@pytest.mark.parametrize("half", [False, True])
def test_products_with_weights_are_in_eight_bits_and_nothing_else(tmp_path: Path, half: bool):
    done = compiled(tmp_path / "layer.onnx", half)
    assert done.precision == "int8"
    # It is rounded, and not by much.
    assert 1e-4 < done.parity.relative < RELATIVE_INT8
    model = onnx.load(tmp_path / "layer.onnx")
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    assert kinds["MatMulInteger"] == 5
    assert kinds["MatMul"] == 2  # q k^T, and weights times v
    assert {"LayerNormalization", "Softmax"} <= set(kinds)
    whole = [t for t in model.graph.initializer if t.data_type == TensorProto.INT8]
    assert (
        sorted(int(np.prod(t.dims)) for t in whole if len(t.dims) == 2) == [4096] * 3 + [16384] * 2
    )
    assert {o.domain for o in model.opset_import} <= {"", "ai.onnx"}


def test_a_layer_on_rows_whose_widths_differ(tmp_path: Path):
    """What a head on the class token is: ONNX keeps its weights the other way round."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 24)).eval()
    x = np.random.default_rng(0).standard_normal((1, 64), np.float32)
    with torch.inference_mode():
        trials = [({"x": x}, {"y": module(torch.from_numpy(x)).numpy()})]
    done = compile_graph(module, ["y"], tmp_path / "head.onnx", trials, "int8")
    assert 1e-4 < done.parity.relative < RELATIVE_INT8
    kinds = collections.Counter(n.op_type for n in onnx.load(tmp_path / "head.onnx").graph.node)
    assert kinds["MatMulInteger"] == 2
    assert not kinds["Gemm"] + kinds["MatMul"]


def test_a_whole_bundle_in_eight_bits_verifies(tiny_checkpoint: Path, tmp_path: Path):
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", precision="int8")
    assert main(["verify", str(bundle)]) == 0


def test_weights_too_large_for_one_file_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(to_onnx, "_SINGLE_FILE_BYTES", 1000)
    compiled(tmp_path / "layer.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layer.onnx", "layer.onnx.data"]
    assert (tmp_path / "layer.onnx.data").stat().st_size < 60_000  # 4 times as many in float32


def test_a_graph_that_eight_bits_spoil_is_refused(tmp_path: Path):
    class Spread(nn.Module):
        """One input is a million times as large as the others, which then round to nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Linear(64, 8, bias=False)
            self.down.weight.data[:, 0] = 0

        def forward(self, x: Tensor) -> Tensor:
            """(1, 4, 64) float -> (1, 4, 8) float."""
            return self.down(x)

    module = Spread()
    x = np.random.default_rng(0).standard_normal((1, 4, 64), np.float32)
    x[..., 0] = 1e6
    with torch.inference_mode():
        trials = [({"x": x}, {"y": module(torch.from_numpy(x)).numpy()})]
    with pytest.raises(ParityError, match="differs from PyTorch by"):
        compile_graph(module, ["y"], tmp_path / "spread.onnx", trials, "int8")


def test_an_answer_near_zero_to_one_input_does_not_spoil_eight_bits(tmp_path: Path):
    """What white noise makes of a trained encoder: rounding is a share of what real inputs give."""
    module = nn.Linear(64, 8, bias=False)
    rng = np.random.default_rng(0)
    real = rng.standard_normal((1, 4, 64), np.float32)
    # orthogonal to the weights, but for a trace
    rows = module.weight.detach().numpy()
    noise = rng.standard_normal((1, 4, 64), np.float32)
    noise -= noise @ np.linalg.pinv(rows).astype(np.float32) @ rows * 0.999
    with torch.inference_mode():
        trials = [({"x": x}, {"y": module(torch.from_numpy(x)).numpy()}) for x in (real, noise)]
    with pytest.raises(ParityError):
        compile_graph(module, ["y"], tmp_path / "alone.onnx", trials[1:], "int8")
    done = compile_graph(module, ["y"], tmp_path / "layer.onnx", trials, "int8")
    assert 1e-4 < done.parity.relative < RELATIVE_INT8 / 5
