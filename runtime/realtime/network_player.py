"""A recorded run, played over a network as a scanner would send it, with faults on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from ..errors import InputError
from .faults import Delivery, Mishap, Plan
from .replay import SERIES, Manner, Playing, Telling
from .run_file import RecordedRun
from .volume_writer import WrittenVolume


class Sender(Protocol):
    """A way to send volumes. All that can fail fails when it is made, or is an InputError."""

    name: str
    """As an operator calls it."""
    mishaps: frozenset[Mishap]
    """Faults that can be played this way."""

    def send(self, volume: WrittenVolume, delivery: Delivery) -> None:
        """Send a volume, whole or not as its delivery says."""
        ...

    def close(self) -> None:
        """Let what was sent arrive, then hang up."""
        ...


class NetworkPlayer(Playing):
    """Plays a run to a receiver.

    Parameters
    ----------
    run, plan, manner, clock, sleep
        As `Playing` takes them.
    sender : Sender
        Closed by `play`.

    Raises
    ------
    InputError
        The plan has a fault that this way of sending cannot have.
    """

    unit = "volumes"

    def __init__(
        self,
        run: RecordedRun,
        plan: Plan,
        sender: Sender,
        manner: Manner,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(run, plan, manner, clock=clock, sleep=sleep)
        self._sender = sender
        for truth in plan.truths:
            if truth.kind not in sender.mishaps:
                sender.close()
                raise InputError(
                    f"'fault' {truth.kind} cannot happen over {sender.name}; it has "
                    f"{', '.join(sorted(sender.mishaps))}"
                )

    def play(self) -> Iterator[Telling]:
        """As `Playing.play`."""
        try:
            yield from super().play()
        finally:
            self._sender.close()

    def deliver(self, delivery: Delivery) -> Telling:
        """Send one volume now, whole or not as its delivery says."""
        self._sender.send(self.volume(delivery), delivery)
        return {
            "event": "volume",
            "number": delivery.number,
            "series": SERIES[delivery.series],
            "content": delivery.content,
            "at_s": self._clock(),
        }
