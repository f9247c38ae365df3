"""A folder into which the scanner writes volumes: NIfTI, DICOM of any kind, or PAR/REC.

A volume is one file, a pair, or one file for each of its slices; a file may hold several volumes.
A file is noticed as soon as the operating system tells, and by a look into the folder from time to
time for what it did not tell. It counts when all of its bytes are there and did not change while
they were read; until then it is tried again, for as long as it grows and a few TRs longer.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, TypeAlias

from ..errors import InputError
from .dicom_slices import SliceFile
from .folder_watcher import FolderWatcher
from .patience import checked_seconds
from .slice_gathering import SliceGathering
from .source import Arrival, Fault, FaultKind, IncompleteVolume, UnreadableVolume
from .volume_files import members, read_file, spokesman

Existing: TypeAlias = Literal["refuse", "ignore", "take"]

_IN_PASSING = re.compile(r"\..*|.*\.(tmp|temp|part|partial|filepart|swp)|.*~", re.IGNORECASE)
"""Names that files bear while they are being written, to get another name when they are whole."""
_RETRY_S = (0.002, 0.05)
"""Least and most time until an incomplete file is read again; between them, a 200th of the pace."""

_ORDER_S = 1e-6
"""Apart in time, so that files that were there before keep their order."""


@dataclass(slots=True)
class _Pending:
    """A file that has been noticed and not yet been read."""

    noticed_s: float
    """When it last changed, as far as we know."""
    retry_at: float = 0.0
    signature: int = 0
    grown_s: float = 0.0
    incomplete: bool = False


class FolderSource:
    """Frames from the files of a folder.

    Parameters
    ----------
    folder : path
        Must exist; sub-folders are not looked at.
    pace_s : float
        Seconds between two volumes, normally the TR.
    first_number : int
        The number that the run's first volume bears: the acquisition number or temporal position
        of DICOM, the last digits of the name of a NIfTI or PAR file. Scanners count from 1.
    existing : {"refuse", "ignore", "take"}
        What to do with files that are there already, as of an earlier run. Taken ones come in the
        order in which they were written.
    pattern : str
        Only files whose name fits it, as in a shell.
    patience_trs : float
        How long a file may stay incomplete without growing before it counts as truncated, and a
        volume of several files without getting more of them before it counts as short.
    rescan_trs : float
        How often to look into the folder.
    watch : bool
        Whether to listen to the operating system as well.
    polling : bool
        Whether listening is done by comparing listings, as network shares need it.
    clock : callable
        Seconds.

    Raises
    ------
    InputError
        No such folder, files in it under `existing="refuse"`, or a number that makes no sense.
    """

    exhausted = False

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        pace_s: float,
        first_number: int = 1,
        existing: Existing = "refuse",
        pattern: str = "*",
        patience_trs: float = 3.0,
        rescan_trs: float = 0.5,
        watch: bool = True,
        polling: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._folder = Path(folder)
        self._pace_s = checked_seconds("pace_s", pace_s)
        self._patience_s = checked_seconds("patience_trs", patience_trs) * pace_s
        self._rescan_s = rescan_trs * pace_s
        self._retry_s = min(max(pace_s / 200, _RETRY_S[0]), _RETRY_S[1])
        self._first_number = first_number
        self._pattern = pattern
        self._polling = polling
        self._clock = clock
        self._pending: dict[str, _Pending] = {}
        self._done: dict[str, int] = {}  # signatures of what has been read or given up
        self._gathering = SliceGathering(self._patience_s)
        self._lost = False
        self._watcher: FolderWatcher | None = None
        self._take_stock(existing)
        self._scanned_at = -float("inf")
        if watch:
            self._watcher = FolderWatcher(self._folder, clock, polling)

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for at most `timeout_s` seconds; what has come, oldest first, possibly nothing."""
        deadline = self._clock() + timeout_s
        while True:
            now_s = self._clock()
            arrivals: list[Arrival] = [*self._look(now_s, deadline - now_s)]
            arrivals += self._read_pending()
            arrivals += self._gathering.tick(self._clock())
            if arrivals or self._clock() >= deadline:
                return arrivals

    def close(self) -> None:
        """Stop the thread that watches."""
        if self._watcher:
            self._watcher.close()

    def _take_stock(self, existing: Existing) -> None:
        """What is in the folder before the run."""
        if not self._folder.is_dir():
            raise InputError(f"{self._folder} is no folder; make it before the run, or correct it")
        names = self._names()
        if not names:
            return
        if existing == "refuse":
            raise InputError(
                f"{self._folder} already holds {len(names)} files; empty it, or say whether they "
                "are of this run ('take') or not ('ignore')"
            )
        now_s = self._clock()
        for place, name in enumerate(sorted(names, key=self._written_ns)):
            if existing == "take":
                # all of them are due at once, in the order in which they were written
                self._pending[name] = _Pending(now_s - (len(names) - place) * _ORDER_S)
            elif signature := self._signature(name):
                self._done[name] = signature

    def _written_ns(self, name: str) -> tuple[int, str]:
        try:
            return (self._folder / name).stat().st_mtime_ns, name
        except OSError:
            return 0, name

    def _names(self) -> list[str]:
        with os.scandir(self._folder) as entries:
            found = {spokesman(entry.name) for entry in entries if entry.is_file()}
        return sorted(name for name in found if self._is_ours(name))

    def _is_ours(self, name: str) -> bool:
        return fnmatch(name, self._pattern) and not _IN_PASSING.fullmatch(name)

    def _signature(self, name: str) -> int:
        """Changes whenever a file does, or one that it stands for; 0 if there is none."""
        stats: list[tuple[int, int, int]] = []
        for member in members(name):
            try:
                found = (self._folder / member).stat()
            except OSError:
                continue
            stats.append((found.st_ino, found.st_size, found.st_mtime_ns))
        return hash(tuple(stats)) or 1 if stats else 0

    def _look(self, now_s: float, wait_s: float) -> list[Fault]:
        """Notice what has changed, waiting for it no longer than `wait_s`."""
        retries = [pending.retry_at for pending in self._pending.values()]
        wait_s = min(wait_s, min([self._scanned_at + self._rescan_s, *retries]) - now_s)
        if self._watcher and not self._watcher.failure:
            for changed, seen_s in self._watcher.changes(max(wait_s, 0.0)):
                if self._is_ours(name := spokesman(changed)):
                    self._notice(name, seen_s)
        elif wait_s > 0:
            time.sleep(min(wait_s, self._retry_s))
        now_s = self._clock()
        return self._rescan(now_s) if now_s - self._scanned_at >= self._rescan_s else []

    def _rescan(self, now_s: float) -> list[Fault]:
        self._scanned_at = now_s
        try:
            names = self._names()
        except OSError as exc:
            if self._lost:
                return []
            self._lost = True
            detail = f"the folder cannot be read: {exc.strerror}"
            return [Fault(kind=FaultKind.SOURCE_LOST, detail=detail, seen_s=now_s)]
        self._lost = False
        told = self._watcher is not None and not self._watcher.failure and not self._polling
        for name in names:
            # changes of known files are told by the operating system, where it tells at all
            if name not in self._pending and not (told and name in self._done):
                self._notice(name, now_s)
        return []

    def _notice(self, name: str, seen_s: float) -> None:
        pending = self._pending.setdefault(name, _Pending(seen_s))
        pending.noticed_s, pending.retry_at = seen_s, seen_s

    def _read_pending(self) -> list[Arrival]:
        now_s = self._clock()
        due = [(p.noticed_s, name) for name, p in self._pending.items() if p.retry_at <= now_s]
        return [arrival for _, name in sorted(due) for arrival in self._try(name, now_s)]

    def _try(self, name: str, now_s: float) -> list[Arrival]:
        """Read a file: its frame, or a fault, or nothing yet."""
        pending = self._pending[name]
        signature = self._signature(name)
        if not signature or signature == self._done.get(name):
            del self._pending[name]
            return []
        if signature != pending.signature:
            pending.signature, pending.grown_s = signature, now_s
        try:
            found = self._read(name, pending.noticed_s)
            if self._signature(name) != signature:
                raise IncompleteVolume("it changed while it was read", *_whose(found))
        except (IncompleteVolume, UnreadableVolume, OSError) as exc:
            if now_s - pending.grown_s <= self._patience_s:
                pending.incomplete = True
                pending.retry_at = now_s + self._retry_s
                return []
            return [self._given_up(name, exc, now_s)]
        self._settle(name)
        if isinstance(found, SliceFile):
            return self._gathering.add(found, now_s, half_written=pending.incomplete)
        if not pending.incomplete:
            return found
        number, series = _whose(found)
        return [
            Fault(
                kind=FaultKind.HALF_WRITTEN,
                number=number,
                series=series,
                seen_s=pending.noticed_s,
            ),
            *found,
        ]

    def _settle(self, name: str) -> None:
        self._done[name] = self._pending.pop(name).signature

    def _given_up(self, name: str, exc: Exception, now_s: float) -> Fault:
        self._settle(name)
        cut_off = isinstance(exc, IncompleteVolume)
        if isinstance(exc, IncompleteVolume):
            self._gathering.spoil(exc.series, exc.number, now_s)
        return Fault(
            kind=FaultKind.TRUNCATED if cut_off else FaultKind.UNREADABLE,
            number=exc.number if isinstance(exc, IncompleteVolume) else None,
            series=exc.series if isinstance(exc, IncompleteVolume) else None,
            # a system's message may hold the file's name, and that a patient's
            detail=exc.strerror or "" if isinstance(exc, OSError) else str(exc),
            seen_s=now_s,
        )

    def _read(self, name: str, arrived_s: float) -> list[Arrival] | SliceFile:
        return read_file(self._folder, name, arrived_s=arrived_s, first_number=self._first_number)


def _whose(found: list[Arrival] | SliceFile) -> tuple[int | None, str | None]:
    """Number and series of what was read; of several volumes, the first one's."""
    first = found if isinstance(found, SliceFile) else found[0]
    return first.number, first.series
