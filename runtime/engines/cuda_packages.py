"""CUDA's libraries in pip's packages: found wherever they are installed, and loaded by their path.

ONNX Runtime looks for them beside itself only, which fails where it is installed apart from them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from importlib.metadata import distributions
from pathlib import Path

_MAJOR = 13
_LIBRARIES = (
    f"cu{_MAJOR}/lib/libcublasLt.so.{_MAJOR}",
    f"cu{_MAJOR}/lib/libcublas.so.{_MAJOR}",
    f"cu{_MAJOR}/lib/libnvJitLink.so.{_MAJOR}",
    f"cu{_MAJOR}/lib/libnvrtc.so.{_MAJOR}",
    f"cu{_MAJOR}/lib/libcurand.so.10",
    f"cu{_MAJOR}/lib/libcufft.so.12",
    f"cu{_MAJOR}/lib/libcudart.so.{_MAJOR}",
    "cudnn/lib/libcudnn.so.9",
)
"""In the order in which they need one another."""
_NAMED = re.compile(r"(?:nvidia|cupy|tensorrt|onnxruntime)\b.*[-_]cu(?:da)?(1\d)x?(?:[-_]|$)")
"""Packages whose names end in, or hold, the CUDA that they are for: cupy-cuda13x."""


def load_cuda_packages() -> list[Path]:
    """Load what is there of CUDA and cuDNN; what is missing shows when it is needed.

    Returns
    -------
    loaded : list of Path
    """
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    loaded: list[Path] = []
    for library in _LIBRARIES:
        path = next((f / library for f in folders if (f / library).is_file()), None)
        if path is None:
            continue
        try:
            ctypes.CDLL(str(path))
        except OSError:
            continue  # the system may have another one; ONNX Runtime says what it lacks
        loaded.append(path)
    return loaded


def cuda_majors() -> dict[str, int]:
    """The CUDA major that each installed package was built for, where its name or version tells."""
    found: dict[str, int] = {}
    for package in distributions():
        name = (package.name or "").lower().replace("_", "-")
        number = package.version or ""
        local = re.search(r"\+cu(1\d)", number)
        named = _NAMED.match(name)
        if local or named:
            found[name] = int((local or named)[1])  # pyright: ignore[reportOptionalSubscript]
        elif name in ("cuda-bindings", "cuda-python", "nvidia-cuda-runtime", "nvidia-cublas"):
            found[name] = int(number.partition(".")[0])
    return dict(sorted(found.items()))
