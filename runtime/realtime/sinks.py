"""Where answers go. A slow or dead consumer costs the loop nothing but a number in the report.

Each sink has a thread of its own and a short queue. `put` never waits: when the queue is full its
oldest message is given up and counted, for the newest answer is the one that matters. Every message
carries its number in the run, so that a consumer sees what it has missed.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..errors import InputError


class MessageRefused(Exception):
    """One message cannot go this way; the next one may."""


class Outlet(Protocol):
    """One way out. May block, may raise; neither reaches the loop."""

    def send(self, message: str) -> None:
        """Deliver one message, a JSON object without line breaks."""
        ...

    def close(self) -> None:
        """Give up what it holds."""
        ...


@runtime_checkable
class Counting(Protocol):
    """An outlet that knows more than what was sent: who came, who was refused and why."""

    def counts(self) -> dict[str, int]:
        """How often each thing happened; any thread may ask, also after `close`."""
        ...


@dataclass(frozen=True, slots=True)
class SinkReport:
    """What a sink has done so far."""

    name: str
    sent: int
    dropped: int
    """Given up: the queue was full, the message refused, or the consumer is gone."""
    waiting: int
    trouble: str | None
    """Why nothing is sent any more, None while it is."""
    counts: dict[str, int] = field(default_factory=dict[str, int])
    """What else the outlet has counted."""

    def as_dict(self) -> dict[str, Any]:
        """As the summary of a run holds it."""
        told = {"name": self.name, "sent": self.sent, "dropped": self.dropped}
        return told | {"trouble": self.trouble} | ({"counts": self.counts} if self.counts else {})


class Sink:
    """An outlet with its own thread and a bounded queue.

    Parameters
    ----------
    name : str
        What the report calls it.
    outlet : Outlet
        The way out; used by the sink's thread alone.
    capacity : int
        Messages that may wait.
    """

    def __init__(self, name: str, outlet: Outlet, capacity: int = 256) -> None:
        if capacity < 1:
            raise InputError(f"'capacity' must be at least 1; got {capacity}")
        self.name = name
        self._outlet = outlet
        self._capacity = capacity
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._sending = self._closing = False
        self._sent = self._dropped = 0
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def put(self, message: str) -> None:
        """Queue a message; never waits for the consumer."""
        with self._changed:
            if self._trouble or self._closing:
                self._dropped += 1
                return
            if len(self._waiting) == self._capacity:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(message)
            self._changed.notify_all()

    def report(self) -> SinkReport:
        """What it has done so far."""
        counts = self._outlet.counts() if isinstance(self._outlet, Counting) else {}
        with self._changed:
            waiting = len(self._waiting) + self._sending
            return SinkReport(self.name, self._sent, self._dropped, waiting, self._trouble, counts)

    def close(self, timeout_s: float = 2.0) -> SinkReport:
        """Let the queue run out for at most `timeout_s`, then give up the rest and count it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            idle = self._changed.wait_for(lambda: not (self._waiting or self._sending), timeout_s)
            if not idle:
                self._trouble = self._trouble or f"the consumer took nothing for {timeout_s:g} s"
                self._dropped += len(self._waiting)
                self._waiting.clear()
                self._changed.notify_all()
        if idle:
            self._thread.join()
        return self.report()

    def _run(self) -> None:
        while (message := self._next()) is not None:
            refused = False
            try:
                self._outlet.send(message)
            except MessageRefused:
                refused = True
            except Exception as exc:  # whatever a consumer does, the run goes on
                self._fail(exc)
            with self._changed:
                lost = refused or self._trouble is not None
                self._sending = False
                self._sent += not lost
                self._dropped += lost
                self._changed.notify_all()
        with contextlib.suppress(Exception):
            self._outlet.close()

    def _next(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            self._sending = True
            return self._waiting.popleft()

    def _fail(self, exc: Exception) -> None:
        with self._changed:
            said = exc.strerror if isinstance(exc, OSError) else None
            self._trouble = said or f"{type(exc).__name__}: {exc}"
            self._dropped += len(self._waiting)
            self._waiting.clear()


class Sinks:
    """Several sinks at once; numbers the messages.

    Parameters
    ----------
    sinks : iterable of Sink
        Each gets every message.
    first : int
        Number of the first message, for a run that goes on.
    """

    def __init__(self, sinks: Iterable[Sink], first: int = 0) -> None:
        self._sinks = tuple(sinks)
        self._number = first
        self._order = threading.Lock()

    def put(self, message: Mapping[str, Any]) -> int:
        """Send a message to every sink.

        Parameters
        ----------
        message : mapping
            Whatever JSON can say; `seq`, its number in the run from 0, is put in front.

        Returns
        -------
        number : int
            That number.
        """
        with self._order:  # messages come from several threads
            number = self._number
            self._number += 1
            text = json.dumps({"seq": number, **message}, ensure_ascii=False, allow_nan=False)
            for sink in self._sinks:
                sink.put(text)
        return number

    def reports(self) -> list[SinkReport]:
        """What each has done so far."""
        return [sink.report() for sink in self._sinks]

    def close(self, timeout_s: float = 2.0) -> list[SinkReport]:
        """Close each, and wait at most `timeout_s` for it."""
        return [sink.close(timeout_s) for sink in self._sinks]


class JsonLines:
    """Messages as lines of a file, a pipe or the terminal.

    Parameters
    ----------
    target : path or int
        A file, to which lines are appended, or an open file descriptor (1 is standard output).

    Raises
    ------
    InputError
        A file that cannot be written.
    """

    def __init__(self, target: str | os.PathLike[str] | int) -> None:
        self._ours = not isinstance(target, int)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._file = target if isinstance(target, int) else os.open(target, flags, 0o644)
        except OSError as exc:
            raise InputError(f"{target} cannot be written: {exc.strerror}") from exc

    def send(self, message: str) -> None:
        """Write one line, past all buffers."""
        left = memoryview(message.encode() + b"\n")
        while left:
            left = left[os.write(self._file, left) :]

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._ours:
            os.close(self._file)
