"""One compiled graph behind one small interface; ONNX Runtime on the CPU is its first backend.

The graph's own inputs and outputs are held against the bundle's contract when it is opened, so that
a run can only fail for lack of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, MissingExtraError
from .manifest import TensorSpec

_ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


class Engine(Protocol):
    """A compiled graph with static shapes."""

    stage: str
    provider: str
    """What executes it, as `placement` reports it."""
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name for inputs by name."""
        ...


class OnnxEngine:
    """A graph in ONNX Runtime, on the CPU and nowhere else.

    Parameters
    ----------
    stage : str
        Name in messages and in `placement`.
    path : Path
        The .onnx file.
    threads : int
        Threads of one operator.

    Raises
    ------
    MissingExtraError
        ONNX Runtime is not installed.
    BundleError
        The file is no graph that this ONNX Runtime loads.
    """

    provider = "CPUExecutionProvider"

    def __init__(self, stage: str, path: Path, threads: int) -> None:
        ort = _onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # stages take turns: a pool that spins after its stage takes the cores from the next one
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.stage = stage
        try:
            self._session = ort.InferenceSession(path, options, providers=[self.provider])
        except Exception as exc:  # onnxruntime's errors share no base of their own
            raise BundleError(
                f"{path}: onnxruntime {ort.__version__} cannot load it ({_first_line(exc)}); "
                "export the bundle again"
            ) from exc
        self.inputs = {i.name: _spec(i) for i in self._session.get_inputs()}
        self.outputs = {o.name: _spec(o) for o in self._session.get_outputs()}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name for inputs by name."""
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))


def check_contract(
    engine: Engine, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> None:
    """BundleError unless the graph takes and gives exactly these tensors."""
    for kind, found, wanted in (
        ("input", engine.inputs, inputs),
        ("output", engine.outputs, outputs),
    ):
        if dict(found) != dict(wanted):
            raise BundleError(
                f"the {engine.stage} graph has the {kind}s {_listed(found)}, but the bundle needs "
                f"{_listed(wanted)}; export the bundle again"
            )


def warm(engine: Engine) -> None:
    """Run once on zeros, so that the first real run finds memory allocated and kernels chosen."""
    engine.run({name: np.zeros(s.shape, s.dtype) for name, s in engine.inputs.items()})


def _spec(value: Any) -> TensorSpec:
    shape = tuple(n if isinstance(n, int) else -1 for n in value.shape)
    return TensorSpec(shape=shape, dtype=_ONNX_TYPES.get(value.type, str(value.type)))


def _listed(tensors: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{name} {list(t.shape)} {t.dtype}" for name, t in tensors.items())


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingExtraError(
            "ONNX Runtime is not installed; run pip install 'scanside[cpu]' "
            "(or 'scanside[gpu]', never both)"
        ) from exc
    return onnxruntime
