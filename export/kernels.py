"""The compiled kernels of a bundle: compiled once for a version of their source, then copied."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..kernels.ahead_of_time import cached_kernels
from ..kernels.compiled import CONTRACT_FILE, CompiledKernels
from ..runtime.errors import MissingExtraError, ScansideError
from ..runtime.user_cache import cache_folder
from .stages import StageReports

FOLDER = "kernels"


def write_kernels(folder: Path, reports: StageReports) -> None:
    """Put the kernels for every GPU below `folder`; none is needed to compile them.

    Raises
    ------
    MissingExtraError
        Triton is not installed.
    ScansideError
        The kernel did not compile.
    """
    try:
        compiled = cached_kernels(cache_folder())
    except ImportError as exc:
        raise MissingExtraError(str(exc)) from exc
    except RuntimeError as exc:
        raise ScansideError(f"the kernels did not compile: {exc}") from exc
    shutil.copytree(compiled, folder / FOLDER, copy_function=shutil.copyfile)
    kernels = CompiledKernels.open(folder / FOLDER)
    reports.kernels = {
        "contract": f"{FOLDER}/{CONTRACT_FILE}",
        "targets": list(kernels.targets),
        "variants": list(kernels.document["variants"]),
    }
    version = kernels.document["triton"]
    for path in (folder / FOLDER).iterdir():
        reports.producer[f"{FOLDER}/{path.name}"] = f"triton {version}"
