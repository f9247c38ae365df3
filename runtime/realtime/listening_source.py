"""What every source does to which volumes are sent: a thread receives, the loop asks."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable

from .allowance import Allowance
from .inbox import Inbox
from .source import Arrival, FaultKind


class ListeningSource(ABC):
    """A source whose protocol a subclass speaks.

    Parameters
    ----------
    clock : callable
        Seconds.
    """

    exhausted = False

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._inbox = Inbox(clock)
        self._allowance = Allowance()

    @property
    def refused(self) -> Counter[str]:
        """How often something was refused, by kind of fault."""
        return self._inbox.refused

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for at most `timeout_s` seconds; what has come, oldest first, possibly nothing."""
        return self._inbox.take(timeout_s)

    def close(self) -> None:
        """End the thread and every connection, and give the ports back."""
        if self._thread.is_alive():
            self._inbox.close()
            self._stop()
            self._thread.join()
            self._stopped()

    def _begin(self, serve: Callable[[], None], name: str) -> None:
        """Receive in a thread of its own, from now on."""
        self._thread = threading.Thread(target=serve, name=name, daemon=True)
        self._thread.start()

    def _refuse(self, detail: str) -> None:
        self._inbox.fault(FaultKind.UNREADABLE, detail)

    @abstractmethod
    def _stop(self) -> None:
        """Make the thread end soon, whatever it waits for."""

    @abstractmethod
    def _stopped(self) -> None:
        """Give up what is left, once the thread has ended."""
