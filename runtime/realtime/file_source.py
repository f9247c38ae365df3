"""A recorded run as a source: a 4-D NIfTI file or a PAR/REC pair, at a pace or as it is taken."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ..errors import InputError
from .frame import Frame, series_identity
from .run_file import open_run
from .source import Arrival, Fault, FaultKind


class FileSource:
    """Frames from a recorded run.

    Parameters
    ----------
    path : path
        As `open_run` takes it.
    pace_s : float
        Seconds between two volumes; 0 gives one at every poll. The first comes one pace after the
        first poll, as a volume is complete one TR after it began.
    at_once : int
        Volumes at the beginning that are given without waiting, for a run that is resumed.
    clock, sleep : callable
        Seconds, and how to let them pass.

    Raises
    ------
    InputError
        A file that `open_run` refuses.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pace_s: float = 0.0,
        at_once: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.run = open_run(path)
        self.exhausted = False
        self._pace_s = pace_s
        self._at_once = at_once
        self._clock = clock
        self._sleep = sleep
        self._volumes = self.run.read()
        self._began_s: float | None = None
        self._number = 0
        # the file's place says which run it is, its name may say whose
        self._series = series_identity(str(self.run.path.resolve()))

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for at most `timeout_s` seconds; all volumes that are due by then."""
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        if self.exhausted:
            return []
        due_s = self._due_s(now_s)
        if due_s > now_s:
            self._sleep(min(due_s - now_s, timeout_s))
            now_s = self._clock()
        arrivals: list[Arrival] = []
        while not self.exhausted and (due_s := self._due_s(now_s)) <= now_s:
            arrivals.append(self._next(due_s))
            if due_s == now_s:  # there is no pace: one at a time
                break
        return arrivals

    def _due_s(self, now_s: float) -> float:
        """When the next volume comes; now if it need not wait."""
        assert self._began_s is not None
        waits = self._number + 1 - self._at_once
        if not self._pace_s or waits <= 0:
            return now_s
        return self._began_s + waits * self._pace_s

    def close(self) -> None:
        """Close the file."""
        self._volumes.close()

    def _next(self, arrived_s: float) -> Arrival:
        number, run = self._number, self.run
        self._number += 1
        try:
            data = next(self._volumes)
        except InputError as exc:
            self.exhausted = True
            return Fault(
                kind=FaultKind.TRUNCATED,
                number=number,
                series=self._series,
                detail=f"the file ends here: {type(exc.__cause__ or exc).__name__}",
                seen_s=arrived_s,
            )
        self.exhausted = self._number == run.volumes
        return Frame(
            number=number,
            data=data,
            affine=run.affine,
            slope=run.slope,
            inter=run.inter,
            tr_s=run.tr_s,
            series=self._series,
            arrived_s=arrived_s,
        )
