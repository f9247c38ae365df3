"""What a figure was measured with: machine, versions, commit and date."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("scanside", "numpy", "onnxruntime", "onnxruntime-gpu", "llama-cpp-python")
_ROOT = Path(__file__).parents[2]
_PARTS = ("export", "kernels", "runtime")


def surroundings(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Device, versions, commit, date and load, as each result holds them.

    Parameters
    ----------
    packages : iterable of str
        Whose versions are told, as far as they are installed.
    """
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: number for name in packages if (number := _installed(name))},
        "commit": _commit(),
        "date": date.today().isoformat(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with "+" where code was changed since; None without a checkout."""
    if not (_ROOT / ".git").exists():
        return None
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", *_PARTS)
    return f"{commit}+" if commit and changed else commit


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
