"""What can become of a volume, of a run, and of an attempt at one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class SlotState(StrEnum):
    """What is known of one volume."""

    WAITING = "waiting"
    """Not there, not overdue."""
    LATE = "late"
    """Overdue; may still come."""
    MISSING = "missing"
    """Given up. If it comes after all it is received."""
    PARTIAL = "partial"
    """Came, but not whole. If it comes again whole it is received."""
    RECEIVED = "received"


class Ending(StrEnum):
    """Why a run is over."""

    COMPLETE = "complete"
    STALLED = "stalled"
    NEVER_BEGAN = "never-began"
    EXHAUSTED = "exhausted"
    """The source has no more, though the run was planned longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What became of one attempt at a run."""

    series: str | None
    volumes: int
    """Volumes that were planned; without a plan, up to the last that came."""
    received: int
    missing: tuple[int, ...]
    partial: tuple[int, ...]
    faults: dict[str, int] = field(default_factory=dict[str, int])
    """How often each kind of fault was seen, frames of foreign series one by one."""
