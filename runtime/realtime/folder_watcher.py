"""Tells which files of a folder have changed, and when that was noticed."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from watchfiles import Change, watch

_STEP_MS = 2
"""How long the operating system's messages are gathered: the least that a volume waits here."""
_GATHERED_MS = 20
"""The most, when they keep coming."""


class FolderWatcher:
    """A thread that listens to the operating system.

    It misses what happens before it has begun to listen, and on network shares all that others
    write; whoever uses it looks into the folder from time to time as well.

    Parameters
    ----------
    folder : Path
        Watched without its sub-folders.
    clock : callable
        Seconds; stamps each change at the moment it is told.
    polling : bool
        Compare listings of the folder instead of listening, for shares.
    """

    def __init__(self, folder: Path, clock: Callable[[], float], polling: bool = False) -> None:
        self.failure: str | None = None
        """Why it has stopped, if it has."""
        self._folder = folder
        self._clock = clock
        self._polling = polling
        self._changes: queue.SimpleQueue[list[tuple[str, float]]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="folder-watcher", daemon=True)
        self._thread.start()

    def changes(self, timeout_s: float) -> list[tuple[str, float]]:
        """Wait for at most `timeout_s`; file names that changed, each with when it was noticed."""
        found: list[tuple[str, float]] = []
        with contextlib.suppress(queue.Empty):
            found += self._changes.get(timeout=timeout_s)
            while True:
                found += self._changes.get_nowait()
        return found

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _listen(self) -> None:
        try:
            for changed in watch(
                self._folder,
                watch_filter=None,
                debounce=_GATHERED_MS,
                step=_STEP_MS,
                rust_timeout=200,  # ms until it looks whether to stop
                stop_event=self._stop,
                recursive=False,
                force_polling=self._polling,
                poll_delay_ms=50,
            ):
                now_s = self._clock()
                there = {path for kind, path in changed if kind is not Change.deleted}
                self._changes.put([(Path(path).name, now_s) for path in sorted(there)])
        except Exception as exc:  # a watcher that dies must not take the run along
            self.failure = f"{type(exc).__name__}: {exc}"
