"""What every benchmark states about its machine, and how it sums up times."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scanside.runtime.bench import summarise_ms, surroundings
from scanside.runtime.bench.surroundings import PACKAGES

ROOT = Path(__file__).resolve().parent.parent


def machine(also: Iterable[str] = ()) -> dict[str, Any]:
    """Device, versions, commit, date, load and command, as each result holds them.

    Parameters
    ----------
    also : iterable of str
        Further packages whose versions matter.
    """
    command = " ".join(["python", *sys.argv])
    return {**surroundings((*PACKAGES, *also)), "command": command}


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Median, tails and extremes of times, in milliseconds.

    A percentile that too few runs can show (one run in twenty, in a hundred) is left out.
    """
    summary = summarise_ms(seconds)
    order = ("runs", "min", "max", "p50", "p95", "p99", "p99.9")
    return {key: summary[key] for key in order if key in summary}


def write(result: dict[str, Any], path: Path | None) -> None:
    """Print a result as JSON, and keep it in a file if one is given."""
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if path is not None:
        path.write_text(text)
