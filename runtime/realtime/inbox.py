"""Between the thread that receives and the loop that asks: bounded, whatever is sent.

Volumes are never thrown away: when the loop falls behind, the receiving thread waits and the
sender with it. Faults are: a peer that sends nothing but garbage would fill the journal. Some of
each kind are told at once, the rest as a number.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from .frame import Frame
from .source import Arrival, Fault, FaultKind

_VOLUMES = 8
"""Volumes that may wait; a run that is read in time has one."""
_TOLD = 20
"""Faults of a kind that are told one by one within a span of time."""
_SPAN_S = 10.0


class Inbox:
    """Arrivals from other threads.

    Parameters
    ----------
    clock : callable
        Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.refused: Counter[str] = Counter()
        """Every fault that was noticed, by kind, those that are not told one by one included."""
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Arrival] = deque()
        self._volumes = 0
        self._spans: dict[FaultKind, tuple[float, int]] = {}
        self._untold: Counter[FaultKind] = Counter()
        self._closed = False

    def put(self, frame: Frame) -> None:
        """Hand a volume over; waits while too many are there, and drops it after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._volumes < _VOLUMES)
            if self._closed:
                return
            self._volumes += 1
            self._waiting.append(frame)
            self._changed.notify_all()

    def pass_on(self, arrival: Arrival) -> None:
        """Hand over whatever a reader has found."""
        if isinstance(arrival, Frame):
            self.put(arrival)
        else:
            self.fault(arrival.kind, arrival.detail, arrival.number, arrival.series)

    def fault(
        self,
        kind: FaultKind,
        detail: str,
        number: int | None = None,
        series: str | None = None,
    ) -> None:
        """Hand a fault over."""
        now_s = self._clock()
        with self._changed:
            self.refused[str(kind)] += 1
            began_s, told = self._spans.get(kind, (now_s, 0))
            if now_s - began_s >= _SPAN_S:
                began_s, told = now_s, 0
            self._spans[kind] = began_s, told + 1
            if told >= _TOLD:
                self._untold[kind] += 1
                return
            found = Fault(kind=kind, number=number, series=series, detail=detail, seen_s=now_s)
            if more := self._untold.pop(kind, 0):
                found = replace(found, detail=f"{detail} (and {more} more before it)")
            self._waiting.append(found)
            self._changed.notify_all()

    def take(self, timeout_s: float) -> list[Arrival]:
        """Wait for at most `timeout_s` seconds; all that is there, oldest first."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, max(timeout_s, 0.0))
            taken = list(self._waiting)
            self._waiting.clear()
            self._volumes = 0
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """Let every thread that waits go on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
