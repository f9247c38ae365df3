"""Engines of TensorRT-RTX, built ahead of time: on any machine, with no GPU and no driver.

One engine holds what all listed kinds of GPU need; their kernels are compiled on the GPU itself, at
the first load, and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..errors import InputError
from .engine_cache import hash_of_graph
from .engine_record import Record
from .fingerprint import Fingerprint, profile_of, this_system
from .graph_file import GraphFile
from .plan_builder import Progress, build_plan
from .tensorrt_library import Library

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")
"""Ampere, Ada Lovelace and Blackwell cards; TensorRT-RTX has nothing for Hopper."""


def rtx_fingerprint(
    library: Library, path: Path, targets: tuple[str, ...] = TARGETS
) -> Fingerprint:
    """Of the engine that `build_rtx` makes: it is bound to kinds of GPU, not to one GPU or driver.

    Parameters
    ----------
    library : Library
    path : Path
        The .onnx file.
    targets : tuple of str
        Kinds of GPU, for example sm_89.
    """
    return Fingerprint(
        onnx=hash_of_graph(path),
        backend=library.backend,
        version=library.version,
        capabilities=targets,
        profile=profile_of(GraphFile.read(path).inputs),
        flags=("strongly-typed",),
        system=this_system(),
    )


def build_rtx(
    library: Library,
    stage: str,
    path: Path,
    targets: tuple[str, ...] = TARGETS,
    progress: Progress | None = None,
) -> tuple[Record, bytes]:
    """Build an engine ahead of time.

    Returns
    -------
    record, plan : Record, bytes

    Raises
    ------
    InputError
        A kind of GPU that this library has nothing for.
    DeviceError
        A node that it rejects.
    """
    kinds = [_capability(library, target) for target in targets]

    def configure(config: Any) -> None:
        config.num_compute_capabilities = len(kinds)
        for index, kind in enumerate(kinds):
            config.set_compute_capability(kind, index)

    built = build_plan(library, path, configure, progress)
    record = Record(
        stage=stage,
        fingerprint=rtx_fingerprint(library, path, targets),
        sha256=hashlib.sha256(built.plan).hexdigest(),
        size_bytes=len(built.plan),
        weights_bytes=built.weights_bytes,
        activation_bytes=built.activation_bytes,
        layers=built.layers,
    )
    return record, built.plan


def _capability(library: Library, target: str) -> Any:
    known = {
        f"sm_{name.removeprefix('SM')}": kind
        for name, kind in library.api.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if target not in known:
        raise InputError(
            f"'gpu' must be of {', '.join(known)}, which {library.name} builds for; got {target!r}"
        )
    return known[target]
