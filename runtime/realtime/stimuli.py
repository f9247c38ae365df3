"""What the subject was shown and when: the events.tsv of BIDS, and markers that come during a run.

Onsets count in seconds from the beginning of the run's first kept volume.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

_MOST_BYTES = 16 << 20
_TYPE = "trial_type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stimulus:
    """One trial."""

    onset_s: float
    """Seconds after the beginning of the first kept volume."""
    duration_s: float
    """Seconds; 0 for a stimulus that is over at once."""
    name: str = ""
    """Its trial_type."""


def read_events(path: Path) -> list[Stimulus]:
    """Read the events.tsv of a run.

    Parameters
    ----------
    path : path
        Tab-separated with columns onset and duration in seconds, and perhaps trial_type.

    Returns
    -------
    stimuli : list of Stimulus
        In the order of the file; a trial's number is its place here, from 0.

    Raises
    ------
    InputError
        No such file, no such columns, no rows, or a value that is no time.
    """
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(raw) > _MOST_BYTES:
        raise InputError(f"{path} has {len(raw)} bytes; that is no events.tsv")
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as exc:
        raise InputError(f"{path} is no text in UTF-8 ({exc})") from exc
    rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [name for name in ("onset", "duration") if name not in (rows.fieldnames or ())]
    if missing:
        raise InputError(
            f"{path} has no column {' and no '.join(missing)}; expected an events.tsv of BIDS, "
            "tab-separated with onset and duration in seconds"
        )
    stimuli = [_stimulus(row, f"{path}, line {line}") for line, row in enumerate(rows, start=2)]
    if not stimuli:
        raise InputError(f"{path} holds no events")
    return stimuli


def check_inside(stimuli: Sequence[Stimulus], run_s: float, name: str) -> None:
    """Refuse stimuli that lie outside the run.

    Parameters
    ----------
    stimuli : sequence of Stimulus
    run_s : float
        Length of the run in seconds, its discarded volumes not counted.
    name : str
        Of the file, for the message.

    Raises
    ------
    InputError
        Any onset before the run or after its end.
    """
    onsets = [stimulus.onset_s for stimulus in stimuli]
    outside = [onset for onset in onsets if not 0 <= onset < run_s]
    if not outside:
        return
    hint = "check the run's length, its TR and '--discard'"
    if len(outside) == len(onsets) and min(onsets) >= run_s:
        hint = "they seem to count from the beginning of the session: subtract this run's start"
    elif min(onsets) < 0:
        hint = "onsets count from the first kept volume, so check '--discard'"
    raise InputError(
        f"{name}: {len(outside)} of {len(onsets)} onsets lie outside the run of {run_s:g} s, the "
        f"first of them at {outside[0]:g} s; {hint}"
    )


def chosen(stimuli: Iterable[Stimulus], names: Iterable[str], where: str) -> frozenset[int]:
    """Numbers of the trials that are to be decoded: those of the given types, or all."""
    wanted, listed = set(names), list(stimuli)
    there = {stimulus.name for stimulus in listed}
    unknown = sorted(wanted - there)
    if unknown:
        raise InputError(
            f"{where} holds no event of type {unknown[0]!r}; those that are there: "
            f"{', '.join(sorted(there))}"
        )
    return frozenset(i for i, one in enumerate(listed) if not wanted or one.name in wanted)


def read_marker(text: str, duration_s: float) -> Stimulus | None:
    """A marker as the stimulus computer sends it during a run; its onset is when it was sent.

    Parameters
    ----------
    text : str
        The type of the trial, or a JSON object with `trial_type` and perhaps `duration` in seconds.
    duration_s : float
        For a marker that does not say.

    Returns
    -------
    stimulus : Stimulus or None
        With onset 0; None for an object that is no trial.

    Examples
    --------
    >>> read_marker('{"trial_type": "face", "duration": 2}', 3.0)
    Stimulus(onset_s=0.0, duration_s=2.0, name='face')
    """
    if not text.lstrip().startswith("{"):
        return Stimulus(onset_s=0.0, duration_s=duration_s, name=text.strip())
    try:
        row: Any = json.loads(text)
        name, lasts = str(row[_TYPE]), float(row.get("duration", duration_s))
    except (ValueError, KeyError, TypeError):
        return None
    if not (math.isfinite(lasts) and lasts >= 0):
        return None
    return Stimulus(onset_s=0.0, duration_s=lasts, name=name)


def _stimulus(row: dict[str, Any], where: str) -> Stimulus:
    onset_s, duration_s = _seconds(row, "onset", where), _seconds(row, "duration", where)
    if duration_s < 0:
        raise InputError(f"{where}: the duration must be 0 or more seconds; got {duration_s:g}")
    return Stimulus(onset_s=onset_s, duration_s=duration_s, name=str(row.get(_TYPE) or ""))


def _seconds(row: dict[str, Any], column: str, where: str) -> float:
    text = str(row.get(column) or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InputError(f"{where}: {column} must be a number of seconds; got {text!r}")
    return seconds
