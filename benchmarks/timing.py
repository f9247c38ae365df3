"""What every benchmark states about its machine, and how it sums up times."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """Device, versions, commit, date and load, as each result holds them."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    packages = ("scanside", "numpy", "onnxruntime", "llama-cpp-python")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in packages},
        "commit": commit,
        "date": date.today().isoformat(),
        "load_before": round(os.getloadavg()[0], 2),
        "command": " ".join(["python", *sys.argv]),
    }


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Median, tails and extremes of times, in milliseconds.

    A percentile that too few runs can show (one run in twenty, in a hundred) is left out.
    """
    ms = np.asarray(seconds) * 1000
    out: dict[str, float] = {"runs": len(ms), "min": float(ms.min()), "max": float(ms.max())}
    for percent, least in ((50, 3), (95, 20), (99, 100)):
        if len(ms) >= least:
            out[f"p{percent}"] = float(np.percentile(ms, percent))
    return {k: round(v, 3) for k, v in out.items()}


def write(result: dict[str, Any], path: Path | None) -> None:
    """Print a result as JSON, and keep it in a file if one is given."""
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if path is not None:
        path.write_text(text)
