"""What every source of volumes does, whichever way they come: folder, file, socket.

A source delivers frames and faults and knows nothing of the run: whether a frame is early, late,
twice there or foreign is for `slots.py` to say, once and for all sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from .frame import Frame


class FaultKind(StrEnum):
    """Everything that can be wrong with what arrives, by the name under which it is reported."""

    HALF_WRITTEN = "half-written"
    """Seen before it was complete, complete later."""
    TRUNCATED = "truncated"
    """Never became complete."""
    SHORT = "short"
    """Legal, but with fewer or with empty slices."""
    DUPLICATE = "duplicate"
    LATE = "late"
    OUT_OF_ORDER = "out-of-order"
    MISSING = "missing"
    FOREIGN = "foreign-series"
    OUTSIDE = "outside-the-run"
    """Its number is before the first or after the last volume of the run."""
    CHANGED = "changed-geometry"
    WRONG_TR = "wrong-tr"
    """The header states another repetition time than the run was set up with."""
    UNREADABLE = "unreadable"
    """Not a volume in any format that is read here."""
    UNUSABLE = "unusable"
    """Its values are no volume's: all zero, NaN, infinite."""
    UNREGISTERED = "not-registered"
    """It could not be aligned to the run's reference."""
    LATE_MARKER = "late-marker"
    """An event came so late that volumes which it explains were summed already."""
    DISK = "disk"
    """Nothing more can be written; decoding goes on."""
    STALL = "stall"
    RESTART = "restart"
    """The scanner began the run anew in another series."""
    CLOCK_SKEW = "clock-skew"
    """The scanner's clock moved against its own count of volumes."""
    SOURCE_LOST = "source-lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that went wrong on the way; never a reason to stop."""

    kind: FaultKind
    number: int | None = None
    """Which volume, counted from 0, as far as it is known."""
    series: str | None = None
    """Which series, as far as it is known."""
    detail: str = ""
    """A sentence for the operator; it holds nothing that names a person, file names included."""
    seen_s: float
    """When it was noticed, on the clock of `time.perf_counter()`."""


Arrival: TypeAlias = Frame | Fault


class Source(Protocol):
    """Where volumes come from. All that can fail fails when it is made."""

    @property
    def exhausted(self) -> bool:
        """Whether nothing can come any more; a scanner's source never says so."""
        ...

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for at most `timeout_s` seconds; what has come, oldest first, possibly nothing."""
        ...

    def close(self) -> None:
        """Give up threads, sockets and files; may be called twice."""
        ...


class IncompleteVolume(Exception):
    """What has come of a volume so far is not all of it; more may follow."""

    def __init__(self, found: str, number: int | None = None, series: str | None = None) -> None:
        super().__init__(found)
        self.number = number
        self.series = series


class UnreadableVolume(Exception):
    """These bytes are no volume that can be read; more of them would not help."""
