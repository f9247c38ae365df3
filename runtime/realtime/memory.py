"""What an earlier life of a run has left in its journal, as the session asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .source import Fault, FaultKind
from .stimuli import Stimulus

Record = Mapping[str, Any]


class Memory:
    """Volumes, answers, faults and live events of a run that was broken off.

    Parameters
    ----------
    records : iterable of mapping
        Of the journal, oldest first; none for a new run.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.attempts = 1
        """Attempts at the run that had begun."""
        self.answers: dict[tuple[int, int, int], dict[str, Any]] = {}
        """Messages of the answers that were given, by attempt, trial and revision."""
        self.faults: list[Fault] = []
        self._resumed = False
        self.lives = 0
        """How often the run was taken up again."""
        self.reached = 0
        """Volumes of the newest attempt up to the highest that was taken in."""
        self._volumes: dict[tuple[int, int], Record] = {}
        self._stimuli: dict[int, list[Stimulus]] = {}
        self._axes: dict[int, dict[str, Any]] = {}
        self._told: set[tuple[int, str, int | None, str | None]] = set()
        for record in records:
            self._resumed = True
            self._take(record)

    @property
    def resumed(self) -> bool:
        """Whether there was an earlier life at all."""
        return self._resumed

    def volume(self, attempt: int, number: int) -> Record | None:
        """What was found about a volume; asked for once."""
        return self._volumes.pop((attempt, number), None)

    def stimuli(self, attempt: int) -> list[Stimulus]:
        """Trials that came live."""
        return self._stimuli.get(attempt, [])

    def axis(self, attempt: int) -> dict[str, Any] | None:
        """Where the attempt began."""
        return self._axes.get(attempt)

    def knows(self, fault: Fault, attempt: int) -> bool:
        """Whether a fault was told already, as it is met again when volumes are read again."""
        return (attempt, str(fault.kind), fault.number, fault.series) in self._told

    def _take(self, record: Record) -> None:
        attempt = self.attempts - 1
        match record["kind"]:
            case "volume":
                self._volumes[attempt, record["number"]] = record
                self.reached = max(self.reached, record["number"] + 1)
            case "answer":
                message = record["message"]
                key = message["attempt"], message["trial"], message["revision"]
                self.answers[key] = message
            case "restart":
                self.attempts += 1
                self.reached = 0
            case "resumed":
                self.lives += 1
            case "event":
                stimulus = Stimulus(
                    onset_s=record["onset_s"], duration_s=record["duration_s"], name=record["name"]
                )
                self._stimuli.setdefault(record["attempt"], []).append(stimulus)
            case "axis":
                self._axes[attempt] = {k: record[k] for k in ("first", "began_s")}
            case "fault":
                self._take_fault(record)
            case _:
                pass

    def _take_fault(self, record: Record) -> None:
        kind = FaultKind(record["fault"])
        fault = Fault(
            kind=kind,
            number=record.get("volume"),
            series=record.get("series"),
            detail=record.get("detail", ""),
            seen_s=0.0,
        )
        self.faults.append(fault)
        self._told.add((record["attempt"], str(kind), fault.number, fault.series))
