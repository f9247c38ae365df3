"""Engines that a bundle carries: those that can be built on any machine, TensorRT-RTX's.

TensorRT's own engines are bound to one model of GPU and are built there, by `scanside build`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..runtime.engines.engine_cache import FOLDER, Shelf
from ..runtime.engines.rtx_builder import build_rtx
from ..runtime.engines.tensorrt_library import library
from ..runtime.errors import InputError
from .stages import StageReports

TARGETS = ("cpu", "cuda", "rtx")
"""cpu and cuda run the graphs themselves; rtx adds an engine of each."""


def check_targets(targets: Sequence[str]) -> None:
    """Before the long work begins.

    Raises
    ------
    InputError
        A target that there is nothing to build for, or that is built elsewhere.
    MissingExtraError
        TensorRT-RTX is asked for and not installed.
    """
    if "tensorrt" in targets:
        raise InputError(
            "'targets' cannot hold tensorrt: its engines are built on the GPU that runs them, by "
            "scanside build BUNDLE --backend tensorrt"
        )
    for target in targets:
        if target not in TARGETS:
            raise InputError(f"'targets' must be of {', '.join(TARGETS)}; got {target!r}")
    if "rtx" in targets:
        library("rtx")


def write_engines(
    folder: Path,
    targets: Sequence[str],
    reports: StageReports,
    progress: Callable[[str], None],
) -> None:
    """engines/rtx/*, one for each graph of the bundle, each for all kinds of GPU.

    Parameters
    ----------
    folder : Path
        The bundle being written; its graphs and their weights are final.
    targets : sequence of str
    reports : StageReports
        Told what made which file.
    progress : callable
        Told what is being done.

    Raises
    ------
    DeviceError
        TensorRT-RTX rejects a graph; the message names the node.
    """
    if "rtx" not in targets:
        return
    lib = library("rtx")
    shelf = Shelf(folder=folder / FOLDER / "rtx", backend="rtx")
    for path in sorted(folder.glob("*.onnx")):
        progress(f"engine of {path.stem} ({lib.name})")
        record, plan = build_rtx(lib, path.stem, path)
        stored = shelf.store(record, plan).relative_to(folder)
        for file in (stored, stored.with_suffix(".json")):
            reports.producer[file.as_posix()] = lib.name
            reports.precision[file.as_posix()] = reports.precision.get(path.name, "exact")
