"""The trials that are shipped: a beta volume, the scene behind it and its true caption."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import BundleError


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One held-out trial with its truth."""

    name: str
    subject: str
    seen: bool
    """Whether other trials of this subject were in the training data; its scene never was."""
    average_of: int
    """Trials of the same scene that were averaged into the volume."""
    volume: Path
    """Beta volume, NIfTI, percent signal change."""
    scene: Path
    """The scene that the subject looked at, PNG."""
    caption: str
    """What is true of the scene."""


def read_trials(folder: Path) -> list[Trial]:
    """Read `trials.json` of a folder; the files that it names stand beside it."""
    listing = folder / "trials.json"
    try:
        rows: list[dict[str, Any]] = json.loads(listing.read_text())["trials"]
        return [_trial(row, folder) for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as exc:
        raise BundleError(
            f"'{listing}' must list trials with {', '.join(f.name for f in fields(Trial))}; "
            f"reading it failed: {exc!r}. Reinstall scanside, its demo data are incomplete."
        ) from exc


def _trial(row: dict[str, Any], folder: Path) -> Trial:
    return Trial(**{**row, "volume": folder / row["volume"], "scene": folder / row["scene"]})
