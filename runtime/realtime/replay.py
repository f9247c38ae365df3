"""A recorded run, played as a scanner would deliver it, with faults on demand; here into a folder.

Everything is told: each file when it is whole, each fault with what a receiver must make of it.
What is told is the truth that tests compare with.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .faults import Delivery, Plan
from .patience import checked_seconds
from .run_file import RecordedRun
from .volume_writer import VolumeWriter, WrittenVolume

Telling: TypeAlias = dict[str, Any]

SERIES = {0: 5, 1: 6, 2: 7}
"""Numbers of the run's series, of one beside it, and of the run begun anew."""
_TEMPORARY = ".part"
_HELD_VOLUMES = 64
"""Volumes kept in memory for deliveries out of turn; longer delays read the file again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How files are written."""

    tr_s: float
    """Repetition time that the headers state, in seconds."""
    speed: float = 1.0
    """How many times faster than that files come."""
    in_place: bool = False
    """Write each file under its own name, in two pieces, a fifth of a TR apart or less
    if a volume has several files; otherwise under a
    passing name that is changed when the file is whole."""

    def __post_init__(self) -> None:
        checked_seconds("tr_s", self.tr_s)
        if not self.speed > 0:
            raise InputError(f"'speed' must be above 0; got {self.speed}")

    @property
    def pace_s(self) -> float:
        """Seconds between two volumes."""
        return self.tr_s / self.speed


class Playing:
    """What playing a run is, wherever it goes.

    Parameters
    ----------
    run : RecordedRun
        What is played.
    plan : Plan
        Which deliveries, when, with which faults.
    manner : Manner
        Pace and way of writing.
    clock, sleep : callable
        Seconds, and how to let them pass.
    """

    unit = "files"
    """What the deliveries are counted as."""

    def __init__(
        self,
        run: RecordedRun,
        plan: Plan,
        manner: Manner,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run = run
        self._plan = plan
        self._manner = manner
        self._clock = clock
        self._sleep = sleep
        self._volumes = _Volumes(run)

    def deliver(self, delivery: Delivery) -> Telling:
        """Deliver one volume now, whole or not; what was done."""
        raise NotImplementedError

    def play(self) -> Iterator[Telling]:
        """Play the run; yields what was done, as it is done, faults first.

        Yields
        ------
        telling : dict
            `event` is `fault` (`kind`, `numbers`, `seen_as`, `amount`), `file` (`number`, `series`,
            `file`, `content`, `at_s` on the clock when it was whole, `behind_s` its delay against
            the plan), and last `done` (`files`, `seconds`, `faults`). Over a network `file` is
            `volume` and has no file.
        """
        try:
            yield from self._play()
        finally:
            self._volumes.close()

    def _play(self) -> Iterator[Telling]:
        for truth in self._plan.truths:
            yield {
                "event": "fault",
                "kind": str(truth.kind),
                "numbers": list(truth.numbers),
                "seen_as": str(truth.seen_as),
                "amount": truth.amount,
            }
        began_s = self._clock()
        for delivery in self._plan.deliveries:
            due_s = began_s + delivery.due_trs * self._manner.pace_s
            early_s = due_s - self._clock()
            if early_s > 0:
                self._sleep(early_s)
            yield self.deliver(delivery) | {"behind_s": round(self._clock() - due_s, 6)}
        yield {
            "event": "done",
            self.unit: len(self._plan.deliveries),
            "seconds": round(self._clock() - began_s, 6),
            "faults": dict(Counter(str(truth.kind) for truth in self._plan.truths)),
        }

    def volume(self, delivery: Delivery) -> WrittenVolume:
        """What a delivery holds."""
        data = self._volumes.get(delivery.number)
        if delivery.content == "short":
            left = data.shape[2] - int(delivery.amount)
            if left < 1:
                raise InputError(
                    f"'fault' short:{delivery.amount:g} leaves nothing of {data.shape[2]} slices"
                )
            data = data[:, :, :left]
        return WrittenVolume(
            data=data,
            affine=self._run.affine,
            slope=self._run.slope,
            inter=self._run.inter,
            tr_s=self._manner.tr_s,
            number=delivery.number,
            series=SERIES[delivery.series],
            acquired_s=delivery.number * self._manner.tr_s + delivery.skew_s,
        )


class Player(Playing):
    """Plays a run into a folder.

    Parameters
    ----------
    run, plan, manner, clock, sleep
        As `Playing` takes them.
    writer : VolumeWriter
        The format.
    folder : Path
        Made if it is not there; must be empty.
    """

    def __init__(
        self,
        run: RecordedRun,
        plan: Plan,
        writer: VolumeWriter,
        folder: Path,
        manner: Manner,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(run, plan, manner, clock=clock, sleep=sleep)
        self._writer = writer
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; replay into an empty folder")

    def deliver(self, delivery: Delivery) -> Telling:
        """Write one volume now, whole or not as its delivery says; of several files the last one
        is cut, and told.
        """
        parts = self._writer.parts(self.volume(delivery))
        if delivery.content == "truncated":
            ending, raw = parts[-1]
            parts[-1] = ending, raw[: max(1, int(len(raw) * delivery.amount))]
        # a further copy bears the same number in more digits, so that it replaces no file
        number = f"{delivery.number + 1:0{6 + delivery.copy}d}"
        name = f"001_{SERIES[delivery.series]:06d}_{number}"
        for ending, raw in parts:
            self._write(self._folder / f"{name}{ending}", raw, 0.2 / len(parts))
        return {
            "event": "file",
            "number": delivery.number,
            "series": SERIES[delivery.series],
            "file": f"{name}{parts[-1][0]}",
            "content": delivery.content,
            "at_s": self._clock(),
        }

    def _write(self, path: Path, raw: bytes, pause_trs: float) -> None:
        if not self._manner.in_place:
            passing = path.with_name(path.name + _TEMPORARY)
            passing.write_bytes(raw)
            os.replace(passing, path)
            return
        with path.open("wb") as file:
            file.write(raw[: len(raw) // 2])
            file.flush()
            self._sleep(pause_trs * self._manner.pace_s)
            file.write(raw[len(raw) // 2 :])


class _Volumes:
    """Volumes by number, most of them asked for in turn."""

    def __init__(self, run: RecordedRun) -> None:
        self._run = run
        self._restart()

    def get(self, number: int) -> NDArray[Any]:
        """(X, Y, Z) in the stored dtype."""
        if number not in self._held and number < self._next:
            self._restart()
        while number not in self._held:
            self._held[self._next] = next(self._reading)
            self._held.pop(self._next - _HELD_VOLUMES, None)
            self._next += 1
        return self._held[number]

    def close(self) -> None:
        """Close the file; what is asked for later opens it again."""
        self._reading.close()
        self._restart()

    def _restart(self) -> None:
        self._reading = self._run.read()
        self._held: dict[int, NDArray[np.generic]] = {}
        self._next = 0
