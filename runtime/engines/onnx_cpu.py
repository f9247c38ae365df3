"""ONNX Runtime on the CPU, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, InputError, MissingExtraError
from ..manifest import TensorSpec
from .cpu_arena import use_shared_arena

_ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
ONLY_ON_A_GPU = ("GroupNorm", "BiasSplitGelu")
"""Operators that `scanside export` may write for a GPU, and the CPU has no kernels for."""

_LARGE_BYTES = 64 << 20
_SPIN_US = "100"


class OnnxEngine:
    """A graph in ONNX Runtime on the CPU.

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
        ort = onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        use_shared_arena(ort, options)
        for key, value in _waiting(path).items():
            options.add_session_config_entry(f"session.{key}", value)
        self.stage = stage
        try:
            self._session: Any = ort.InferenceSession(path, options, providers=[self.provider])
        except Exception as exc:  # onnxruntime's errors share no base of their own
            raise BundleError(_refused(stage, path, ort.__version__, first_line(exc))) from exc
        self.inputs, self.outputs = contract_of(self._session)
        self._names = list(self.outputs)
        self._halves = any(spec.dtype == "float16" for spec in self.outputs.values())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name for inputs by name."""
        session = self._session  # another thread may close this engine meanwhile
        if session is None:
            raise InputError(f"the {self.stage} graph is closed; open the bundle again")
        given = {name: np.asarray(v, self.inputs[name].dtype) for name, v in feeds.items()}
        found = session.run(self._names, given)
        if self._halves:
            found = map(single, found)
        return dict(zip(self._names, found, strict=True))

    def close(self) -> None:
        """Let go of the graph, though who holds this engine, or a closed decoder, does not."""
        self._session = None


def _waiting(path: Path) -> dict[str, str]:
    """What a thread does that waits for the next operator.

    Stages take turns: a pool that spins after its stage takes the cores from the next one. Within a
    stage it saves the waking up, which a large graph gains from; in small ones the slowest runs
    became slower.
    """
    files = (path, path.with_name(f"{path.name}.data"))  # beside it lies what protobuf cannot hold
    if sum(file.stat().st_size for file in files if file.is_file()) > _LARGE_BYTES:
        return {"intra_op.spin_duration_us": _SPIN_US, "force_spinning_stop": "1"}
    return {"intra_op.allow_spinning": "0"}


def _refused(stage: str, path: Path, version: str, said: str) -> str:
    held = [kind for kind in ONLY_ON_A_GPU if re.search(rf"\b{kind}\(", said)]
    if held:
        return (
            f"{path.name} holds {held[0]}, which ONNX Runtime has only on a GPU; write "
            f"{stage}=cuda into the device, or export the bundle without --fuse cuda"
        )
    return f"{path}: onnxruntime {version} cannot load it ({said}); export the bundle again"


def contract_of(session: Any) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Inputs and outputs of a session, as the graph has them; -1 stands for a size that varies."""
    return (
        {i.name: _spec(i) for i in session.get_inputs()},
        {o.name: _spec(o) for o in session.get_outputs()},
    )


def _spec(value: Any) -> TensorSpec:
    shape = tuple(n if isinstance(n, int) else -1 for n in value.shape)
    return TensorSpec(shape=shape, dtype=_ONNX_TYPES.get(value.type, str(value.type)))


def single(values: NDArray[Any]) -> NDArray[Any]:
    """Half precision in single, as everything outside a graph computes; anything else as it is."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def first_line(exc: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(exc).splitlines() or [type(exc).__name__])[0]


def onnxruntime() -> Any:
    """The module; MissingExtraError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingExtraError(
            "ONNX Runtime is not installed; run pip install 'scanside[cpu]' "
            "(or 'scanside[gpu]', never both)"
        ) from exc
    return onnxruntime
