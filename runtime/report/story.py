"""What a run's folder tells, put together from its journal.

The journal alone decides what there was; the summary adds how the run ended, if it did. Nothing
here names a person or a place on a disk: paths that the run was set up with are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..realtime.journal import read_journal
from ..realtime.run_folder import BETAS, JOURNAL, SUMMARY, beta_file

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """What the subject was shown."""

    onset_s: float | None
    """Seconds after the beginning of the first kept volume."""
    duration_s: float | None
    """None where an old journal does not say."""
    name: str


@dataclass(slots=True)
class Trial:
    """One trial with its answers, by revision: 0 fast, 1 refined."""

    number: int
    event: Event
    answers: dict[int, Record] = field(default_factory=dict[int, Record])

    @property
    def best(self) -> Record | None:
        """The refined answer, or the fast one where that was not answered."""
        found = [self.answers[one] for one in sorted(self.answers, reverse=True)]
        answered = [one for one in found if one["state"] == "answered"]
        return (answered or found or [None])[0]


@dataclass(slots=True)
class Attempt:
    """From the scanner's first volume to its last, or to where it began anew."""

    number: int
    first: int = 0
    """The scanner's number of the first kept volume."""
    model_to_world: NDArray[np.float64] | None = None
    """(4, 4) voxels of the model grid to the world of the run, in millimetres."""
    volumes: dict[int, Record] = field(default_factory=dict[int, Record])
    """By the scanner's number."""
    faults: list[Record] = field(default_factory=list[Record])
    trials: dict[int, Trial] = field(default_factory=dict[int, Trial])

    def series(self, name: str) -> NDArray[np.float64]:
        """(V,) one value of each volume in order; NaN where it has none."""
        rows = (self.volumes[number].get(name) for number in sorted(self.volumes))
        return np.array([np.nan if row is None else row for row in rows], np.float64)

    def missing(self) -> list[int]:
        """Volumes between the first and the last that never came."""
        if not self.volumes:
            return []
        return [one for one in range(self.first, max(self.volumes)) if one not in self.volumes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A run that is over, broken off, or still going on."""

    folder: Path
    header: Record
    setting: Record
    """Of the run's newest life: at, version, bundle, device, deadline_s, gate, speed."""
    began: str
    """Date and time, UTC; empty where an old journal does not say."""
    lives: int
    """How often the run was taken up again."""
    summary: Record | None
    """None while it is not over."""
    attempts: tuple[Attempt, ...]

    @property
    def tr_s(self) -> float:
        """Repetition time in seconds."""
        return float(self.header["tr_s"])

    @property
    def source(self) -> str:
        """The kind of source; where it was may name a person."""
        return str(self.header["source"]).partition(":")[0]

    @property
    def last(self) -> Attempt:
        """The attempt that went on to the end."""
        return self.attempts[-1]

    def trials(self) -> Iterator[tuple[Attempt, Trial]]:
        """Every trial of every attempt, in order."""
        for attempt in self.attempts:
            for number in sorted(attempt.trials):
                yield attempt, attempt.trials[number]

    def answers(self) -> Iterator[Record]:
        """Every answer."""
        for _, trial in self.trials():
            yield from (trial.answers[one] for one in sorted(trial.answers))

    def time_s(self, attempt: Attempt, volume: int) -> float:
        """When a volume begins, in seconds from the first kept one."""
        return (volume - attempt.first) * self.tr_s

    def beta(self, attempt: int, trial: int, revision: int) -> NDArray[np.float32] | None:
        """(2, E) float32, values and variance of an answer's beta; None if none was kept."""
        path = self.folder / BETAS / beta_file(attempt, trial, revision)
        try:
            both = np.load(path, allow_pickle=False)
        except OSError:
            return None
        except ValueError as exc:
            raise InputError(f"{path} is damaged ({exc}); restore it, or remove it") from exc
        return both


def read_story(folder: Path) -> Story:
    """Read a run's folder.

    Parameters
    ----------
    folder : Path
        As `scanside watch --out` wrote it.

    Raises
    ------
    InputError
        No folder of a run, or a damaged one.
    """
    if not (folder / JOURNAL).is_file():
        raise InputError(f"{folder} holds no {JOURNAL}; name a folder that 'watch --out' wrote")
    past = read_journal(folder / JOURNAL)
    lives = [one for one in past.records if one["kind"] in ("began", "resumed")]
    return Story(
        folder=folder,
        header=past.header,
        setting=lives[-1] if lives else {},
        began=str(lives[0].get("at", "")) if lives else "",
        lives=sum(one["kind"] == "resumed" for one in lives),
        summary=_summary(folder / SUMMARY),
        attempts=_attempts(past.records, past.header),
    )


def _summary(path: Path) -> Record | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise InputError(f"{path} is damaged ({exc}); restore it, or remove it") from exc


def _attempts(records: Iterable[Record], header: Record) -> tuple[Attempt, ...]:
    known = [Event(*event) for one in records if one["kind"] == "events" for event in one["events"]]
    wanted = set(header["trial_types"])

    def begin(number: int) -> Attempt:
        made = Attempt(number, first=int(header["discard"]))
        for trial, event in enumerate(known):
            if not wanted or event.name in wanted:
                made.trials[trial] = Trial(trial, event)
        return made

    attempts = [begin(0)]
    live = [len(known)]
    for record in records:
        newest = attempts[-1]
        match record["kind"]:
            case "restart":
                attempts.append(begin(len(attempts)))
                live.append(len(known))
            case "axis" if record["first"] is not None:
                newest.first = record["first"]
            case "place":
                newest.model_to_world = np.vstack([record["model_to_world"], [0, 0, 0, 1]])
            case "volume":
                newest.volumes[record["number"]] = record
            case "fault":
                attempts[min(record["attempt"], len(attempts) - 1)].faults.append(record)
            case "event":
                event = Event(record["onset_s"], record["duration_s"], record["name"])
                newest.trials[live[-1]] = Trial(live[-1], event)
                live[-1] += 1
            case "answer":
                _take_answer(attempts, record["message"])
            case _:
                pass
    return tuple(attempts)


def _take_answer(attempts: list[Attempt], message: Record) -> None:
    trials = attempts[message["attempt"]].trials
    number = message["trial"]
    if number not in trials:
        event = Event(message["onset_s"], None, message["trial_type"])
        trials[number] = Trial(number, event)
    trials[number].answers[message["revision"]] = message
