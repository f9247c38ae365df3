"""Slices that come one by one, gathered into volumes; finite in patience and in memory.

A volume is whole when it has as many slices as its series: as many as the headers say, or, where
they do not, as the fullest of the first volumes has when another one begins. That costs the first
volumes of such a run two TRs, once; those that follow are whole with their last slice. A further
series of the same matrix is taken to have as many slices, or its first volumes would come all at
once and look like the run begun anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .dicom_geometry import NoVolume, stack_slices
from .dicom_slices import SliceFile
from .frame import Frame
from .source import Arrival, Fault, FaultKind

_VOLUMES_BEFORE = 2
"""Volumes that must have come before their number of slices is taken for the run's."""
_MAX_VOLUMES = 64
_MAX_SERIES = 64
_MAX_SLICES = 1024
"""Of one volume; no scanner makes so many."""
_SAME_MM = 0.05


@dataclass(slots=True, eq=False)
class _Growing:
    """A volume that is not whole yet."""

    number: int
    slices: dict[int, SliceFile] = field(default_factory=dict[int, SliceFile])
    """By their place along the normal, in steps of `_SAME_MM`."""
    again: list[SliceFile] = field(default_factory=list[SliceFile])
    """Of a place that is taken already."""
    grown_s: float = 0.0
    half_written: bool = False
    told: bool = False
    """Whether a fault has said that it is not whole."""


@dataclass(slots=True, eq=False)
class _Series:
    slices: int | None = None
    supposed: bool = False
    """Whether `slices` is that of another series, and nothing has confirmed it."""
    growing: dict[int, _Growing] = field(default_factory=dict[int, _Growing])
    done: set[int] = field(default_factory=set[int])


class SliceGathering:
    """Volumes from slices.

    Parameters
    ----------
    patience_s : float
        How long a volume may lack slices, without getting any, before that is a fault.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._series: dict[str, _Series] = {}
        self._usual: dict[tuple[int, ...], int] = {}  # slices, by the matrix

    def add(self, came: SliceFile, now_s: float, half_written: bool = False) -> list[Arrival]:
        """Take in a slice.

        Parameters
        ----------
        came : SliceFile
        now_s : float
            The time.
        half_written : bool
            Whether its file was seen before it was complete.

        Returns
        -------
        arrivals : list
            What it makes whole: frames, and the faults that they show.
        """
        if came.series not in self._series and len(self._series) >= _MAX_SERIES:
            return []  # a folder that holds so many is not a run's
        series = self._series.setdefault(came.series, _Series())
        if came.slices:
            series.slices, series.supposed = came.slices, False
        elif series.slices is None and came.slice.pixels.shape in self._usual:
            series.slices, series.supposed = self._usual[came.slice.pixels.shape], True
        volume = self._volume(series, came.number)
        volume.grown_s, volume.half_written = now_s, volume.half_written or half_written
        place = round(came.slice.depth_mm / _SAME_MM)
        if place in volume.slices:
            if len(volume.again) < _MAX_SLICES:
                volume.again.append(came)
            return []
        if len(volume.slices) < _MAX_SLICES:
            volume.slices[place] = came
        unknown = series.slices is None or series.supposed
        if unknown and len(series.growing) > _VOLUMES_BEFORE:
            before = [v for v in series.growing.values() if v is not volume]
            series.slices, series.supposed = max(len(v.slices) for v in before), False
        return self._whole(series, now_s)

    def spoil(self, series: str | None, number: int | None, now_s: float) -> None:
        """A slice of this volume never became complete, which has been told."""
        if number is not None and series in self._series:
            volume = self._volume(self._series[series], number)
            volume.told, volume.grown_s = True, now_s

    def tick(self, now_s: float) -> list[Arrival]:
        """What the passing of time alone makes whole or short."""
        arrivals: list[Arrival] = []
        for name, series in self._series.items():
            over = [v for v in series.growing.values() if now_s - v.grown_s > self._patience_s]
            if over and series.slices is None:
                series.slices = max(len(v.slices) for v in series.growing.values()) or None
                arrivals += self._whole(series, now_s)
            for volume in over:
                if not volume.told and series.growing.get(volume.number) is volume:
                    arrivals.append(self._short(name, series, volume, now_s))
        return arrivals

    def _volume(self, series: _Series, number: int) -> _Growing:
        if number not in series.growing and len(series.growing) >= _MAX_VOLUMES:
            del series.growing[min(series.growing, key=lambda n: series.growing[n].grown_s)]
        return series.growing.setdefault(number, _Growing(number))

    def _whole(self, series: _Series, now_s: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        for number, volume in sorted(series.growing.items()):
            if series.slices and len(volume.slices) >= series.slices:
                del series.growing[number]
                series.done.add(number)
                series.supposed = False
                matrix = next(iter(volume.slices.values())).slice.pixels.shape
                if len(self._usual) < _MAX_SERIES or matrix in self._usual:
                    self._usual[matrix] = series.slices
                arrivals += _arrivals(volume)
                for came in volume.again:
                    arrivals += self.add(came, now_s)
        return arrivals

    def _short(self, name: str, series: _Series, volume: _Growing, now_s: float) -> Fault:
        volume.told = True
        if volume.number in series.done:
            detail = f"{len(volume.slices)} slices of a volume that was whole before"
            kind = FaultKind.DUPLICATE
        else:
            detail, kind = f"{len(volume.slices)} of {series.slices} slices", FaultKind.SHORT
        return Fault(kind=kind, number=volume.number, series=name, detail=detail, seen_s=now_s)


def _arrivals(volume: _Growing) -> list[Arrival]:
    """A frame, and what there is to say of it."""
    came = list(volume.slices.values())
    last_s = max(one.arrived_s for one in came)
    told: list[Arrival] = []
    if volume.half_written:
        told.append(
            Fault(
                kind=FaultKind.HALF_WRITTEN,
                number=volume.number,
                series=came[0].series,
                seen_s=last_s,
            )
        )
    try:
        stack = stack_slices([one.slice for one in came])
    except NoVolume as exc:
        fault = Fault(
            kind=FaultKind.CHANGED,
            number=volume.number,
            series=came[0].series,
            detail=str(exc),
            seen_s=last_s,
        )
        return [*told, fault]
    times = [one.acquired_s for one in came if one.acquired_s is not None]
    frame = Frame(
        number=volume.number,
        data=stack.data,
        affine=stack.affine,
        slope=stack.slope,
        inter=stack.inter,
        tr_s=came[0].tr_s,
        series=came[0].series,
        arrived_s=last_s,
        acquired_s=min(times) if times else None,
    )
    return [*told, frame]
