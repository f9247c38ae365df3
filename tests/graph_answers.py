"""What graphs give on the CPU, and whether two of them give the same."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto

TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def answers(model: ModelProto, seed: int = 0) -> list[np.ndarray]:
    """All outputs for normal inputs of a seed."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    feeds = {
        i.name: rng.standard_normal(i.shape).astype(kinds[i.type]) for i in session.get_inputs()
    }
    return session.run(None, feeds)


def agree(got: list[np.ndarray], want: list[np.ndarray], bound: float = 1e-5) -> None:
    """Every output is within `bound` of the other's largest."""
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        apart = np.abs(one.astype(np.float64) - other.astype(np.float64)).max()
        assert apart <= bound * np.abs(other.astype(np.float64)).max()


def kinds(model: ModelProto) -> list[str]:
    """The operators, node by node."""
    return [node.op_type for node in model.graph.node]
