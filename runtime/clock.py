"""One clock for a decode, what its stages cost, and what still fits before the deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import contextmanager

_MARGIN = 1.15
"""A stage is planned to cost this much more than was measured: late is worse than short."""
_DEVIATIONS = 2.0
"""And this many times what it lately deviated from the expected."""
_NEWEST = 0.5
"""Share of the newest measurement in the running cost and deviation."""


class Costs:
    """Running costs of the stages in seconds, learnt at warm-up and from every decode."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._deviation: dict[str, float] = {}

    def learn(self, stage: str, seconds: float) -> None:
        """Take in a measurement."""
        known = self._seconds.get(stage, seconds)
        self._seconds[stage] = (1 - _NEWEST) * known + _NEWEST * seconds
        before = self._deviation.get(stage, 0.0)
        self._deviation[stage] = (1 - _NEWEST) * before + _NEWEST * abs(seconds - known)

    def of(self, stage: str) -> float:
        """Seconds to plan for; 0 for a stage that was never measured."""
        if stage not in self._seconds:
            return 0.0
        return self._seconds[stage] * _MARGIN + _DEVIATIONS * self._deviation[stage]

    @contextmanager
    def measured(self, stage: str, per: int = 1) -> Generator[None]:
        """Learn from what happens inside, divided by the number of times it happens."""
        began = time.perf_counter()
        yield
        self.learn(stage, (time.perf_counter() - began) / per)


class Clock:
    """Time since a decode began, stage by stage.

    Parameters
    ----------
    deadline_s : float, optional
        Seconds from now.
    """

    def __init__(self, deadline_s: float | None) -> None:
        self._began = time.perf_counter()
        self.deadline_at = None if deadline_s is None else self._began + deadline_s
        """On the scale of `time.perf_counter()`."""
        self.latency_ms: dict[str, float] = {}

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, negative after it, infinite without one."""
        if self.deadline_at is None:
            return math.inf
        return self.deadline_at - time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Add what happens inside to a stage's latency."""
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a stage's latency."""
        self.latency_ms[name] = self.latency_ms.get(name, 0.0) + 1e3 * seconds

    def mark(self, name: str) -> None:
        """Note the time from the beginning until now, the first time only."""
        self.latency_ms.setdefault(name, 1e3 * (time.perf_counter() - self._began))
