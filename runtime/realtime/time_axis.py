"""Where a run begins: which volume is the first that is kept, and when it began on our clock.

Without a trigger the first kept volume follows those that are discarded. With one it is the volume
that the trigger opened: it is complete one TR later at the earliest, so the first that arrives
after that time.
"""

from __future__ import annotations

import math
from typing import Any

from .frame import Frame
from .session_config import SessionConfig

_EARLY_TRS = 0.1
"""How much earlier than one TR after its trigger a volume may seem to arrive."""


class TimeAxis:
    """The run's time.

    Parameters
    ----------
    config : SessionConfig
    """

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        self._triggers: list[float] = []
        self._newest_s = -math.inf
        self.begin()

    def begin(self) -> None:
        """Begin anew, as the scanner did; a trigger since the last volume opens the new attempt."""
        self.first = None if self._config.trigger else self._config.discard
        """Number of the first kept volume; None before the trigger."""
        self._began_s = math.inf
        self._triggers = [at_s for at_s in self._triggers if at_s > self._newest_s]

    def trigger(self, at_s: float) -> None:
        """Take in a trigger; the first of an attempt counts."""
        self._triggers.append(at_s)

    def number(self, frame: Frame) -> int | None:
        """A volume's number from the first kept one; None for one that comes before it."""
        config = self._config
        if self.first is None:
            if not self._triggers:
                return None
            if frame.arrived_s < self._triggers[0] + (1 - _EARLY_TRS) * config.pace_s:
                return None
            self.first, self._began_s = frame.number, self._triggers[0]
        number = frame.number - self.first
        if number < 0:
            return None
        self._newest_s = max(self._newest_s, frame.arrived_s)
        if config.trigger is None:
            # arrivals are late by chance, never early: the earliest is nearest to the truth
            began_s = frame.arrived_s - config.lag_s - (number + 1) * config.pace_s
            self._began_s = min(self._began_s, began_s)
        return number

    def onset_s(self, at_s: float) -> float | None:
        """A moment of our clock in seconds of the run; None before it has begun."""
        if self.first is None or not math.isfinite(self._began_s):
            return None
        return (at_s - self._began_s) * self._config.speed

    def as_record(self) -> dict[str, Any]:
        """As a journal holds it."""
        return {"first": self.first, "began_s": self._began_s}

    def restore(self, record: dict[str, Any]) -> None:
        """Go on with what an earlier life of the run knew; the clock is the machine's."""
        self.first, self._began_s = record["first"], record["began_s"]
