"""Markers that the stimulus computer sends over the Lab Streaming Layer during a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from ..errors import InputError
from .lsl_outlet import keep_to_this_machine

_FIND_S = 5.0
"""How long a stream may take to be found before the run."""
_CLOCK_S = 2.0
"""How long the other machine's clock may take to answer."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A marker and when it was sent."""

    at_s: float
    """On the clock of `time.perf_counter()` of this machine."""
    text: str


class Markers(Protocol):
    """Where markers come from."""

    def poll(self) -> list[Marker]:
        """What has come since the last call, oldest first; never waits."""
        ...

    def close(self) -> None:
        """Give it up."""
        ...


class LslMarkers:
    """The markers of one LSL stream, their stamps brought to our clock.

    Parameters
    ----------
    name : str
        Of the stream; it must be there before the run.
    local : bool
        Whether it is sought on this machine alone.

    Raises
    ------
    InputError
        No such stream.
    """

    def __init__(self, name: str, *, local: bool = False) -> None:
        if local:
            keep_to_this_machine()
        import pylsl

        found = pylsl.resolve_byprop("name", name, timeout=_FIND_S)
        if not found:
            raise InputError(
                f"no LSL stream is called {name!r}; start the stimulus program before the run, or "
                "correct the name"
            )
        self._inlet: pylsl.StreamInlet | None = pylsl.StreamInlet(found[0], max_buflen=60)
        self._inlet.open_stream(timeout=_FIND_S)
        try:
            theirs_to_ours = self._inlet.time_correction(timeout=_CLOCK_S)
        except pylsl.util.TimeoutError:
            theirs_to_ours = 0.0
        # LSL's clock of this machine and ours differ by a constant
        self._offset_s = theirs_to_ours + time.perf_counter() - pylsl.local_clock()

    def poll(self) -> list[Marker]:
        """What has come since the last call, oldest first; never waits."""
        if self._inlet is None:
            return []
        samples, stamps = self._inlet.pull_chunk(timeout=0.0)
        return [
            Marker(stamp + self._offset_s, str(sample[0]))
            for sample, stamp in zip(samples or (), stamps or (), strict=True)
        ]

    def close(self) -> None:
        """Close the stream; may be called twice."""
        if self._inlet is not None:
            self._inlet.close_stream()
        self._inlet = None
