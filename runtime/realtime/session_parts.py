"""What a session is made of, and what it shows of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .arrivals import Arrivals
from .beta_scale import BetaScale
from .intake import Intake, Taken
from .journal import Journal
from .live_markers import Markers
from .memory import Memory
from .run_folder import RunFolder
from .session_config import SessionConfig
from .sinks import Sink, Sinks
from .source import Fault
from .stimuli import Stimulus


@dataclass(slots=True, kw_only=True)
class Progress:
    """What an operator wants to see now."""

    received: int = 0
    newest: int = -1
    last_arrived_s: float | None = None
    taken: Taken | None = None
    latency_s: float = 0.0
    """Of the last volume, from its arrival until it is in the fit."""
    latest: dict[str, Any] | None = None
    """The last answer."""
    fault: Fault | None = None
    """The last fault."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """What a session is made of; all of it is opened before the run."""

    config: SessionConfig
    arrivals: Arrivals
    intake: Intake
    scale: BetaScale
    stimuli: Sequence[Stimulus]
    """Known before the run."""
    wanted: frozenset[int] | None
    """Which of them are answered; all if None."""
    markers: Markers | None
    live_events: bool
    """Whether markers are trials; otherwise only the trigger is heeded."""
    folder: RunFolder
    journal: Journal
    memory: Memory
    """What an earlier life of the run has left."""
    record: Sink
    """Where every answer is written down."""
    sinks: Sinks
    """Feedback."""
