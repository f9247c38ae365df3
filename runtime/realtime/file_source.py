"""A recorded run as a source: one 4-D NIfTI file, given out at a pace or as fast as it is taken."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ..errors import InputError
from .frame import Frame, series_identity
from .run_file import RunFile
from .source import Arrival, Fault, FaultKind


class FileSource:
    """Frames from a 4-D file.

    Parameters
    ----------
    path : path
        As `RunFile` takes it.
    pace_s : float
        Seconds between two volumes; 0 gives one at every poll. The first comes one pace after the
        first poll, as a volume is complete one TR after it began.
    clock, sleep : callable
        Seconds, and how to let them pass.

    Raises
    ------
    InputError
        A file that `RunFile` refuses.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pace_s: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.run = RunFile(path)
        self.exhausted = False
        self._pace_s = pace_s
        self._clock = clock
        self._sleep = sleep
        self._volumes = self.run.read()
        self._began_s: float | None = None
        self._number = 0
        # the file's place says which run it is, its name may say whose
        self._series = series_identity(str(self.run.path.resolve()))

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for at most `timeout_s` seconds; the next volume, if it is due by then."""
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        if self.exhausted:
            return []
        due_s = self._began_s + (self._number + 1) * self._pace_s if self._pace_s else now_s
        if due_s > now_s:
            self._sleep(min(due_s - now_s, timeout_s))
            if self._clock() < due_s:
                return []
        return [self._next(due_s)]

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
