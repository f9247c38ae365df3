"""Counts of a run in constant memory: faults by kind, answers by state, latencies by stage."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np

from .source import Fault

_KEPT = 4096
"""Latencies of a stage from which percentiles are taken: the newest."""
_NUMBERS = 100
"""Volumes that are named for each kind of fault; all are counted."""


class Tally:
    """What happened so far; any thread may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: Counter[str] = Counter()
        self._numbers: dict[str, set[int]] = {}
        self._details: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._latencies: dict[str, _Newest] = {}

    def fault(self, fault: Fault) -> None:
        """Take in a fault."""
        with self._lock:
            kind = str(fault.kind)
            self._faults[kind] += 1
            numbers = self._numbers.setdefault(kind, set())
            if fault.number is not None and len(numbers) < _NUMBERS:
                numbers.add(fault.number)
            if fault.detail:
                self._details.setdefault(kind, fault.detail)

    def count(self, what: str, by: int = 1) -> None:
        """Count something."""
        with self._lock:
            self._counts[what] += by

    def latency(self, stage: str, seconds: float) -> None:
        """Take in how long something took."""
        with self._lock:
            self._latencies.setdefault(stage, _Newest()).add(seconds)

    def of(self, what: str) -> int:
        """How often something was counted."""
        with self._lock:
            return self._counts[what]

    def faults(self) -> dict[str, dict[str, Any]]:
        """Each kind of fault: how often, which volumes (from 0), and what was said first."""
        with self._lock:
            return {
                kind: {
                    "count": count,
                    "volumes": sorted(self._numbers[kind]),
                    **({"detail": self._details[kind]} if kind in self._details else {}),
                }
                for kind, count in sorted(self._faults.items())
            }

    def latency_ms(self) -> dict[str, dict[str, float]]:
        """p50, p95, p99 and max of each stage in milliseconds."""
        with self._lock:
            return {stage: newest.percentiles() for stage, newest in self._latencies.items()}


class _Newest:
    """The newest values of a series, and its largest."""

    def __init__(self) -> None:
        self._values = np.zeros(_KEPT, np.float32)
        self._count = 0
        self._most = 0.0

    def add(self, seconds: float) -> None:
        self._values[self._count % _KEPT] = seconds
        self._count += 1
        self._most = max(self._most, seconds)

    def percentiles(self) -> dict[str, float]:
        values = 1e3 * self._values[: min(self._count, _KEPT)]
        p50, p95, p99 = (round(float(p), 2) for p in np.percentile(values, (50, 95, 99)))
        count = self._count
        return {
            "count": count,
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "max": round(1e3 * self._most, 2),
        }
