"""Who else computes while something is measured."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_STAT = Path("/proc/stat")
TOLERATED = 0.05
"""Share of all cores that others may take before a figure is marked."""


class Neighbours:
    """Cores that other processes take meanwhile; use it in a `with` statement around a measurement.

    All that the machine computes, less what this process and its children do; on a virtual machine
    also what its host takes away. Where there is no /proc/stat the load average of the minute
    before stands in.
    """

    def __init__(self) -> None:
        self.cores = os.cpu_count() or 1
        self.taken: float | None = None
        """Cores that others took on average; None where that cannot be known."""
        self._load_before = os.getloadavg()[0]
        self._began = (0.0, 0.0, 0.0)

    def __enter__(self) -> Neighbours:
        self._began = _now()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        wall, busy, own = (now - then for now, then in zip(_now(), self._began, strict=True))
        if _STAT.exists() and wall > 0:
            self.taken = max(0.0, (busy - own) / wall)

    @property
    def under_load(self) -> bool:
        """Whether others took so much that a figure must say so."""
        taken = self._load_before if self.taken is None else self.taken
        return taken > TOLERATED * self.cores

    def as_dict(self) -> dict[str, Any]:
        """As a result holds it."""
        taken = None if self.taken is None else round(self.taken, 3)
        return {"others_cores": taken, "under_load": self.under_load}


def _now() -> tuple[float, float, float]:
    """Seconds of the wall clock, of all cores at work, and of this process with its children."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return time.perf_counter(), _busy_s(), own


def _busy_s() -> float:
    if not _STAT.exists():
        return 0.0
    fields = _STAT.read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
