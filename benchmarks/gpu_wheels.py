"""Packages for the GPU suite out of a folder of wheels, on a machine without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def install(wheels: Path, target: Path) -> None:
    """Unpack every wheel of a folder, without a network and without what they ask for.

    SystemExit says which folder holds none, or what pip says.
    """
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise SystemExit(f"{wheels} holds no wheels")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    words += ["--no-compile", "--upgrade", "--target", str(target), *files]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise SystemExit(f"the wheels of {wheels} cannot be installed: {lines[-1]}")


def found_first(wheels: Path | None, scratch: Path) -> dict[str, str]:
    """The environment in which packages of the wheels come before those that are installed."""
    if not wheels:
        return {}
    before = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(scratch / "site"), before)))}
