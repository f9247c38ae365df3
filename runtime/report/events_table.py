"""The events.tsv of a run with what was decoded, and the sidecar that explains its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..realtime.messages import WINDOWS
from .story import Attempt, Record

NONE = "n/a"

COLUMNS: dict[str, dict[str, Any]] = {
    "onset": {"Description": "from the first kept volume", "Units": "s"},
    "duration": {"Description": "of the stimulus", "Units": "s"},
    "trial_type": {"Description": "as the events of the run named it"},
    "trial": {"Description": "number of the trial, from 0"},
    "decoded_window": {
        "Description": "which answer the columns that follow hold",
        "Levels": {
            "fast": "it knows the volumes of a short window after the onset",
            "refined": "it knows those of a long one",
        },
    },
    "decoded_state": {
        "Description": "what became of the answer",
        "Levels": {
            "answered": "it was decoded",
            "dropped": "it could not begin before its deadline",
            "failed": "it could not be decoded",
            "impossible": "the trial cannot be told from the volumes that came",
        },
    },
    "decoded_caption": {"Description": "what was seen, as decoded"},
    "decoded_description": {"Description": "the same at length, as decoded"},
    "decoded_prompt": {"Description": "text that conditioned the picture"},
    "decoded_preview": {"Description": "picture without diffusion, path in the dataset"},
    "decoded_image": {"Description": "picture, path in the dataset"},
    "decoded_confidence": {
        "Description": "0 to 1; it orders the answers of a run and is no probability"
    },
    "decoded_latency": {
        "Description": "from the arrival of the last volume that it knows to the answer's end",
        "Units": "s",
    },
    "decoded_missed_deadline": {
        "Description": "whether it came later than its deadline",
        "Levels": {"true": "it did", "false": "it did not"},
    },
    "decoded_withheld": {
        "Description": "whether feedback was withheld for too little confidence",
        "Levels": {"true": "it was", "false": "it was not"},
    },
    "fast_caption": {"Description": "caption of the fast answer"},
    "fast_confidence": {"Description": "confidence of the fast answer, 0 to 1"},
}


def sidecar() -> dict[str, Any]:
    """The columns that BIDS does not know, and the description of the file."""
    return {"Description": "trials of the run and what was decoded from them", **COLUMNS}


def table(attempt: Attempt, pictures: Mapping[tuple[int, str], str]) -> list[list[str]]:
    """A row for each trial, in the order of their onsets.

    Parameters
    ----------
    attempt : Attempt
    pictures : mapping
        Paths in the dataset, by trial and kind.
    """
    rows: list[tuple[float, list[str]]] = []
    for trial in attempt.trials.values():
        best: Record = trial.best or {}
        fast: Record = trial.answers.get(0, {})
        total_ms = best.get("latency_ms", {}).get("total")
        values = {
            "onset": trial.event.onset_s,
            "duration": trial.event.duration_s,
            "trial_type": trial.event.name,
            "trial": trial.number,
            "decoded_window": WINDOWS[best["revision"]] if best else None,
            "decoded_state": best.get("state"),
            "decoded_caption": best.get("caption"),
            "decoded_description": best.get("description"),
            "decoded_prompt": best.get("prompt"),
            "decoded_preview": pictures.get((trial.number, "preview")),
            "decoded_image": pictures.get((trial.number, "image")),
            "decoded_confidence": best.get("confidence", {}).get("value"),
            "decoded_latency": None if total_ms is None else round(total_ms / 1e3, 5),
            "decoded_missed_deadline": best.get("missed_deadline"),
            "decoded_withheld": best.get("withheld"),
            "fast_caption": fast.get("caption"),
            "fast_confidence": fast.get("confidence", {}).get("value"),
        }
        rows.append((trial.event.onset_s or 0.0, [_cell(values[name]) for name in COLUMNS]))
    return [row for _, row in sorted(rows, key=lambda one: one[0])]


def _cell(value: Any) -> str:
    """A value as it stands in a table: on one line, never empty."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    return " ".join(str(value).split()) or NONE
