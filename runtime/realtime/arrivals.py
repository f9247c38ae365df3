"""A source and the run's slots together: what the session's loop iterates over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from .frame import Frame
from .slot_state import Ending
from .slots import Slots
from .source import Arrival, Source

_WAIT_TRS = 0.25
"""The longest that a poll lasts, so that what is overdue is noticed in time."""


class Arrivals:
    """Frames that the run can use, and every fault, in the order in which they become known.

    Iteration ends when the run is over; `ending` then says why. It always ends: each wait is one of
    `Patience`.

    Parameters
    ----------
    source : Source
        Where volumes come from.
    slots : Slots
        The run's.
    clock : callable
        Seconds; the source's.
    """

    def __init__(
        self, source: Source, slots: Slots, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.source = source
        self.slots = slots
        self.ending: Ending | None = None
        """Why the run is over, None while it is not."""
        self._clock = clock
        self._began_s = clock()

    def step(self, timeout_s: float) -> list[Arrival]:
        """Wait for at most `timeout_s` seconds; what has become known, possibly nothing."""
        if self.ending:
            return []
        came = self.source.poll(timeout_s)
        found: list[Arrival] = []
        for arrival in came:
            if isinstance(arrival, Frame):
                found += self.slots.place(arrival)
            else:
                found += self.slots.note(arrival)
        now_s = self._clock()
        found += self.slots.tick(now_s)
        self.ending = self.slots.ending(now_s, self._began_s, self.source.exhausted)
        if self.ending:
            found += self.slots.finish(now_s)
        return found

    def __iter__(self) -> Iterator[Arrival]:
        while not self.ending:
            yield from self.step(_WAIT_TRS * self.slots.pace_s)
