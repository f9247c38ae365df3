"""From an ONNX file to an engine's bytes, with the calls that TensorRT 10, 11 and RTX share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DeviceError
from .layers import count_layers, memory_of
from .tensorrt_library import Library, Log

Configure = Callable[[Any], None]
"""Sets a builder's configuration, `IBuilderConfig`."""
Progress = Callable[[str, float], None]
"""Told a phase and how much of it is done, 0 to 1."""
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An engine, and what its builder said of it."""

    plan: bytes
    layers: dict[str, int]
    weights_bytes: int
    activation_bytes: int


def build_plan(
    library: Library, path: Path, configure: Configure, progress: Progress | None = None
) -> Built:
    """Build an engine.

    Parameters
    ----------
    library : Library
        TensorRT-RTX builds anywhere; TensorRT needs a GPU, and its caller must have asked for it.
    path : Path
        The .onnx file; every number's precision is in it.
    configure : callable
        Sets what is particular to a backend.
    progress : callable, optional

    Raises
    ------
    DeviceError
        The library rejects a node, or fails; the message quotes it.
    """
    api, log = library.api, library.log(verbose=True)
    try:
        builder = api.Builder(log.sink)
    except TypeError as exc:  # what the bindings raise where the library gives no builder
        raise DeviceError(f"{library.name} does not start: {log.said()}") from exc
    network = builder.create_network(_network_flags(api))
    # the parser owns the weights that the network points to: it has to outlive the build
    parser = _parse(library, path, network, log)
    config = builder.create_builder_config()
    # without it the log does not list the finished layers
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    configure(config)
    monitor = _monitor(api, progress) if progress else None
    if monitor:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    del parser
    if plan is None:
        raise DeviceError(
            f"{library.name} cannot build {path.name}: {log.said()}; run this stage on another "
            "device, or export the bundle with --precision fp16"
        )
    texts = [text for _, text in log.messages]
    memory = memory_of(texts)
    return Built(
        plan=bytes(plan),
        layers=count_layers(texts),
        weights_bytes=memory.get("weights", 0),
        activation_bytes=memory.get("activation", 0),
    )


def _network_flags(api: Any) -> int:
    """Types as in the ONNX file. From TensorRT 11 on nothing else exists, and the flag may go."""
    flag = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(library: Library, path: Path, network: Any, log: Log) -> Any:
    parser = library.api.OnnxParser(network, log.sink)
    if parser.parse_from_file(str(path)):
        return parser
    # a node is often told of twice
    told = (_rejected(parser.get_error(index)) for index in range(parser.num_errors))
    errors = list(dict.fromkeys(told))
    named = "; ".join(errors[:_MOST_NAMED]) or log.said()
    more = f" and {len(errors) - _MOST_NAMED} more" if len(errors) > _MOST_NAMED else ""
    raise DeviceError(
        f"{library.name} rejects {path.name}: {named}{more}; run this stage on another device, "
        f"for example with device='{library.backend},{path.stem}=cuda'"
    )


def _rejected(error: Any) -> str:
    """One error of the parser: which node, and why."""
    kind, name = error.node_operator(), error.node_name()
    node = f"{kind} {name!r}: " if kind else ""
    return node + " ".join(str(error.desc()).split())


def _monitor(api: Any, progress: Progress) -> Any:
    class Monitor(api.IProgressMonitor):
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            progress(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, (step + 1) / max(self._steps.get(phase_name, 1), 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress(phase_name, 1.0)

    return Monitor()
