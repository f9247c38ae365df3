"""What may go wrong with a run that is replayed: which faults, where, and what a receiver must see.

Pure planning: from the number of volumes, the faults asked for and a seed to a list of deliveries.
The same arguments always give the same plan. Faults never fall on the same or neighbouring volumes,
so that each can be recognised by itself, and the first and last volumes stay whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

import numpy as np

from ..errors import InputError
from .source import FaultKind


class Mishap(StrEnum):
    """The faults that can be asked for."""

    DROP = "drop"
    DUPLICATE = "duplicate"
    SWAP = "swap"
    TRUNCATE = "truncate"
    SHORT = "short"
    DELAY = "delay"
    STALL = "stall"
    SECOND_SERIES = "second-series"
    RESTART = "restart"
    CLOCK_SKEW = "clock-skew"


@dataclass(frozen=True, slots=True)
class _Meaning:
    amount: float
    unit: str
    seen_as: FaultKind


_MEANINGS = {
    Mishap.DROP: _Meaning(1, "volumes in a row that never come", FaultKind.MISSING),
    Mishap.DUPLICATE: _Meaning(1, "further copies of a volume", FaultKind.DUPLICATE),
    Mishap.SWAP: _Meaning(1, "volumes that come after the next one", FaultKind.OUT_OF_ORDER),
    Mishap.TRUNCATE: _Meaning(0.5, "share of a file that is written", FaultKind.TRUNCATED),
    Mishap.SHORT: _Meaning(1, "slices that a legal file lacks", FaultKind.SHORT),
    Mishap.DELAY: _Meaning(4, "TRs by which one volume comes later", FaultKind.LATE),
    Mishap.STALL: _Meaning(7, "TRs in which nothing comes, then all at once", FaultKind.STALL),
    Mishap.SECOND_SERIES: _Meaning(
        10, "volumes that come twice, the second time in another series", FaultKind.FOREIGN
    ),
    Mishap.RESTART: _Meaning(5, "TRs of silence before the run begins anew", FaultKind.RESTART),
    Mishap.CLOCK_SKEW: _Meaning(
        5, "seconds by which the scanner's clock jumps", FaultKind.CLOCK_SKEW
    ),
}
_WHOLE_NUMBERS = {Mishap.DROP, Mishap.DUPLICATE, Mishap.SWAP, Mishap.SHORT, Mishap.SECOND_SERIES}
_PATTERN = re.compile(r"(?P<kind>[a-z-]+)(:(?P<amount>-?\d+(\.\d+)?))?(@(?P<at>\d+))?")


@dataclass(frozen=True, slots=True)
class FaultRequest:
    """One fault to play."""

    kind: Mishap
    amount: float
    at: int | None = None
    """The first volume that it concerns, from 0; drawn by the seed if None."""

    @classmethod
    def parse(cls, text: str) -> FaultRequest:
        """Read KIND, KIND:AMOUNT or KIND:AMOUNT@VOLUME, volumes counted from 0.

        >>> FaultRequest.parse("delay:3@17")
        FaultRequest(kind=<Mishap.DELAY: 'delay'>, amount=3.0, at=17)
        """
        found = _PATTERN.fullmatch(text)
        kinds = ", ".join(Mishap)
        if not found or found["kind"] not in list(Mishap):
            raise InputError(
                f"'fault' must be KIND[:AMOUNT][@VOLUME], KIND one of {kinds}; got {text}"
            )
        kind = Mishap(found["kind"])
        amount = float(found["amount"] or _MEANINGS[kind].amount)
        whole = kind in _WHOLE_NUMBERS
        fits = amount >= 1 and amount == int(amount) if whole else amount > 0
        if kind is Mishap.CLOCK_SKEW:
            fits = amount != 0
        if kind is Mishap.TRUNCATE:
            fits = 0 < amount < 1
        if not fits:
            raise InputError(
                f"'fault' {kind}: its amount is {_MEANINGS[kind].unit}; got {amount:g}"
            )
        return cls(kind, amount, None if found["at"] is None else int(found["at"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One file that a receiver gets."""

    due_trs: float
    """When, in TRs from the beginning of the run."""
    number: int
    """Which volume, from 0."""
    series: int = 0
    """0 is the run's, 1 a second one beside it, 2 the run begun anew."""
    copy: int = 0
    """0 for the first file of a volume, counted up for its duplicates."""
    content: Literal["whole", "truncated", "short"] = "whole"
    amount: float = 0.0
    """Share of the file if truncated, slices lacking if short."""
    skew_s: float = 0.0
    """By how much the scanner's clock is off."""


@dataclass(frozen=True, slots=True)
class Truth:
    """A fault that is in the plan."""

    kind: Mishap
    numbers: tuple[int, ...]
    """The volumes that it concerns."""
    seen_as: FaultKind
    """What a receiver must report."""
    amount: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A run with its faults."""

    deliveries: tuple[Delivery, ...]
    """In the order in which they are due."""
    truths: tuple[Truth, ...]


def plan_run(volumes: int, requests: Sequence[FaultRequest], seed: int = 0) -> Plan:
    """Plan the deliveries of a run.

    Parameters
    ----------
    volumes : int
        Volumes of the run.
    requests : sequence of FaultRequest
        What is to go wrong.
    seed : int
        Draws the volumes that a request leaves open.

    Raises
    ------
    InputError
        A volume outside the run, or no room for all faults.
    """
    rng = np.random.default_rng(seed)
    places = _places(volumes, requests, rng)
    run = [Delivery(due_trs=n + 1.0, number=n) for n in range(volumes)]
    truths: list[Truth] = []
    # what moves whole stretches of time comes last
    order = sorted(zip(requests, places, strict=True), key=lambda item: _rank(item[0].kind))
    for request, at in order:
        run, numbers = _apply(run, request, at, volumes)
        truths.append(Truth(request.kind, numbers, _MEANINGS[request.kind].seen_as, request.amount))
    run.sort(key=lambda d: (d.due_trs, d.series, d.number, d.copy))
    return Plan(tuple(run), tuple(truths))


def _rank(kind: Mishap) -> int:
    last = [Mishap.SECOND_SERIES, Mishap.STALL, Mishap.RESTART]
    return last.index(kind) + 1 if kind in last else 0


def _span(request: FaultRequest) -> int:
    """Volumes that a fault touches."""
    long = {Mishap.DROP: int(request.amount), Mishap.SWAP: int(request.amount) + 1}
    return long.get(request.kind, 1)


def _places(volumes: int, requests: Sequence[FaultRequest], rng: np.random.Generator) -> list[int]:
    """The first volume of each fault: those that are given, then those that are drawn."""
    taken: set[int] = set()
    places: dict[int, int] = {}
    order = sorted(range(len(requests)), key=lambda i: requests[i].at is None)
    for index in order:
        request = requests[index]
        span, at = _span(request), request.at
        first = int(request.kind is Mishap.RESTART)  # something must have come before it
        if at is not None and not first <= at <= volumes - span:
            raise InputError(f"'fault' {request.kind}@{at} lies outside a run of {volumes} volumes")
        if at is None:
            free = [
                n
                for n in range(2, volumes - span - 1)
                if not taken & set(range(n - 1, n + span + 1))
            ]
            if not free:
                raise InputError(f"'fault' {request.kind}: no room left in {volumes} volumes")
            at = int(rng.choice(free))
        taken |= set(range(at - 1, at + span + 1))
        places[index] = at
    return [places[index] for index in range(len(requests))]


def _apply(
    run: list[Delivery], request: FaultRequest, at: int, volumes: int
) -> tuple[list[Delivery], tuple[int, ...]]:
    """A run with one more fault, and the volumes that this concerns."""
    amount, here = request.amount, range(at, at + 1)

    def change(numbers: range, **values: object) -> list[Delivery]:
        return [replace(d, **values) if d.number in numbers else d for d in run]

    match request.kind:
        case Mishap.DROP:
            here = range(at, at + int(amount))
            return [d for d in run if d.number not in here], (*here,)
        case Mishap.DUPLICATE:
            first = next(d for d in run if d.number == at)
            copies = [
                replace(first, copy=c, due_trs=first.due_trs + 0.3 * c)
                for c in range(1, int(amount) + 1)
            ]
            return [*run, *copies], (at,)
        case Mishap.SWAP:
            here = range(at, at + int(amount))
            behind = at + int(amount) + 1 + 0.2  # just after the volume that follows them
            moved = {n: behind + 0.1 * i for i, n in enumerate(here)}
            return [replace(d, due_trs=moved.get(d.number, d.due_trs)) for d in run], (*here,)
        case Mishap.TRUNCATE:
            return change(here, content="truncated", amount=amount), (at,)
        case Mishap.SHORT:
            return change(here, content="short", amount=amount), (at,)
        case Mishap.DELAY:
            return change(here, due_trs=at + 1.1 + amount), (at,)
        case Mishap.CLOCK_SKEW:
            return [replace(d, skew_s=amount) if d.number >= at else d for d in run], (at,)
        case Mishap.SECOND_SERIES:
            here = range(at, min(at + int(amount), volumes))
            again = [
                Delivery(due_trs=d.due_trs + 0.4, number=d.number, series=1)
                for d in run
                if d.number in here and d.copy == 0
            ]
            return [*run, *again], (*here,)
        case Mishap.STALL:
            begin, end = at + 1.0, at + 1.0 + amount
            held = [
                replace(d, due_trs=end + 0.02 * (d.due_trs - begin))
                if begin <= d.due_trs <= end
                else d
                for d in run
            ]
            return held, (at,)
        case Mishap.RESTART:
            broken_off = [Delivery(due_trs=n + 1.0, number=n) for n in range(at)]
            shift = at + amount
            anew = [replace(d, due_trs=d.due_trs + shift, series=d.series or 2) for d in run]
            return [*broken_off, *anew], (at,)
