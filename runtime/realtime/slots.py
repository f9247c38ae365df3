"""Which volume of the run is where: a slot for each acquisition number, in any order of arrival.

A gap keeps its place on the time axis: slot n stands for the time n * TR even when nothing ever
comes for it. Times of arrival only decide when to stop waiting; no clock but ours is trusted.
Nothing here reads a file, sleeps or raises: a bad volume is a fault in the list that comes back.
"""

from __future__ import annotations

from collections import Counter

from ..errors import InputError
from .extent import Extent
from .foreign import ForeignSeries
from .frame import Frame
from .header_watch import HeaderWatch
from .patience import Patience, checked_seconds
from .slot_state import Ending, RunSummary, SlotState
from .source import Arrival, Fault, FaultKind

_FIRST_NUMBER_LIMIT = 10_000
"""Without a plan, a run that seems to begin later than this has a number that cannot be trusted."""


class Slots:
    """The slots of a run.

    Parameters
    ----------
    tr_s : float
        Repetition time in seconds: slot n stands for the time n * tr_s.
    pace_s : float, optional
        Seconds between two arrivals, for a recorded run that is played faster; by default `tr_s`.
    volumes : int, optional
        How many volumes the run will have, if that is known.
    series : str, optional
        The series to take; by default that of the first frame.
    patience : Patience
        How long to wait for what.
    """

    def __init__(
        self,
        *,
        tr_s: float,
        pace_s: float | None = None,
        volumes: int | None = None,
        series: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.tr_s = checked_seconds("tr_s", tr_s)
        self.pace_s = checked_seconds("pace_s", tr_s if pace_s is None else pace_s)
        if volumes is not None and volumes < 1:
            raise InputError(f"'volumes' must be at least 1; got {volumes}")
        self.volumes = volumes
        self.series = series
        self.patience = patience or Patience()
        self.former: list[RunSummary] = []
        """Attempts that the scanner broke off, oldest first."""
        self._foreign = ForeignSeries()
        self._foreign_told: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._states: list[SlotState] = []
        self._due: dict[int, float] = {}  # of gaps: passed over, not given up
        self._newest_s = 0.0  # arrival of the highest number
        self._stalled = False
        self._extent: Extent | None = None
        self._headers = HeaderWatch(self.tr_s)
        self._counts: Counter[str] = Counter()

    @property
    def highest(self) -> int:
        """The highest number so far, -1 before the first."""
        return len(self._states) - 1

    def state(self, number: int) -> SlotState:
        """What is known of a volume."""
        return self._states[number] if 0 <= number <= self.highest else SlotState.WAITING

    def place(self, frame: Frame) -> list[Arrival]:
        """Put a frame into its slot.

        Returns
        -------
        arrivals : list
            The faults that the frame shows, then the frame itself if the run can use it. After a
            fault `restart` come all frames of the new attempt, on an empty time axis. A fault
            `short` may name a volume that was handed out: one of the first, too short itself.
        """
        if self.series is None:
            self.series = frame.series
        if frame.series != self.series:
            return self._place_foreign(frame)
        self._foreign.settle()
        arrivals: list[Arrival] = [*self._foreign_faults(frame.arrived_s)]
        arrivals += self._silence(frame.arrived_s, frame.number)
        if not self._inside(frame.number):
            planned = "unknown length" if self.volumes is None else f"{self.volumes} volumes"
            return [*arrivals, self._fault(FaultKind.OUTSIDE, frame, f"of a run of {planned}")]
        if self.state(frame.number) is SlotState.RECEIVED:
            return [*arrivals, self._fault(FaultKind.DUPLICATE, frame)]
        arrivals += self._order(frame)
        arrivals += self._measure(frame)
        if self._states[frame.number] is not SlotState.RECEIVED:
            return arrivals
        arrivals += [self._fault(kind, frame, text) for kind, text in self._headers.look(frame)]
        return [*arrivals, frame]

    def note(self, fault: Fault) -> list[Fault]:
        """Count a fault of the source, and mark the slot that it concerns."""
        self._counts[fault.kind] += 1
        number = fault.number
        ours = fault.series in (None, self.series)
        partial = fault.kind in (FaultKind.TRUNCATED, FaultKind.SHORT)
        if partial and ours and number is not None:
            if self._inside(number) and self.state(number) is not SlotState.RECEIVED:
                self._reach(number, fault.seen_s)
                self._resolve(number, SlotState.PARTIAL)
        return [fault]

    def tick(self, now_s: float) -> list[Fault]:
        """What the passing of time alone makes late, missing or stalled."""
        faults = self._silence(now_s, None)
        for number, due_s in sorted(self._due.items()):
            overdue_trs = (now_s - due_s) / self.pace_s
            if overdue_trs > self.patience.missing_trs:
                faults.append(self._give_up(number, now_s))
            elif overdue_trs > self.patience.late_trs:
                self._states[number] = SlotState.LATE
        return faults

    def ending(self, now_s: float, began_s: float, exhausted: bool = False) -> Ending | None:
        """Whether the run is over, and why.

        Parameters
        ----------
        now_s, began_s : float
            The time, and when waiting for the run began.
        exhausted : bool
            Whether the source has nothing more.
        """
        if self._all_there():
            return Ending.COMPLETE
        if exhausted:
            whole = self.volumes is None and self.highest >= 0
            return Ending.COMPLETE if whole else Ending.EXHAUSTED
        if self.highest < 0:
            waited_trs = (now_s - began_s) / self.pace_s
            return Ending.NEVER_BEGAN if waited_trs > self.patience.begin_trs else None
        allowed_trs = self.patience.end_trs
        if self.volumes is not None:  # when the scan ends is known, and so when to stop waiting
            left = self.volumes - 1 - self.highest
            allowed_trs = min(allowed_trs, left + self.patience.missing_trs)
        silent_trs = (now_s - self._newest_s) / self.pace_s
        return Ending.STALLED if silent_trs > allowed_trs else None

    def finish(self, now_s: float) -> list[Fault]:
        """Give up what has not come; to be called once, when the run is over."""
        self._foreign.settle()
        faults = self._foreign_faults(now_s)
        last = self.highest + 1 if self.volumes is None else self.volumes
        for number in sorted({*self._due, *range(self.highest + 1, last)}):
            self._reach(number, now_s)
            faults.append(self._give_up(number, now_s))
        return faults

    def summary(self) -> RunSummary:
        """What is known of this attempt by now."""

        def where(state: SlotState) -> tuple[int, ...]:
            return tuple(n for n, s in enumerate(self._states) if s is state)

        return RunSummary(
            series=self.series,
            volumes=len(self._states) if self.volumes is None else self.volumes,
            received=len(where(SlotState.RECEIVED)),
            missing=where(SlotState.MISSING),
            partial=where(SlotState.PARTIAL),
            faults=dict(self._counts),
        )

    def _place_foreign(self, frame: Frame) -> list[Arrival]:
        shape = self._extent and self._extent.shape
        may_restart = shape == frame.data.shape and not self._all_there()
        attempt = self._foreign.add(frame, may_restart)
        arrivals: list[Arrival] = [*self._foreign_faults(frame.arrived_s)]
        if not attempt:
            return arrivals
        broken_off = self.highest
        self.former.append(self.summary())
        self._foreign.retire(self.series or "")
        self.series = frame.series
        self._clear()
        arrivals.append(self._fault(FaultKind.RESTART, attempt[0], f"broken off at {broken_off}"))
        return arrivals + [arrival for held in attempt for arrival in self.place(held)]

    def _foreign_faults(self, now_s: float) -> list[Fault]:
        """One fault for each series that shows itself, though every frame is counted."""
        faults: list[Fault] = []
        for series, frames in self._foreign.take_settled().items():
            self._counts[FaultKind.FOREIGN] += frames
            if series not in self._foreign_told:
                self._foreign_told.add(series)
                faults.append(Fault(kind=FaultKind.FOREIGN, series=series, seen_s=now_s))
        return faults

    def _fault(self, kind: FaultKind, frame: Frame, detail: str = "") -> Fault:
        return self._told(kind, frame.number, frame.arrived_s, detail)

    def _told(self, kind: FaultKind, number: int, now_s: float, detail: str = "") -> Fault:
        self._counts[kind] += 1
        return Fault(kind=kind, number=number, series=self.series, detail=detail, seen_s=now_s)

    def _all_there(self) -> bool:
        return self.volumes is not None and self.highest == self.volumes - 1 and not self._due

    def _inside(self, number: int) -> bool:
        if self.volumes is not None:
            return 0 <= number < self.volumes
        # without a plan, what lies beyond the end of all patience cannot be of this run
        begun = self.highest >= 0
        limit = self.highest + int(self.patience.end_trs) if begun else _FIRST_NUMBER_LIMIT
        return 0 <= number <= limit

    def _reach(self, number: int, now_s: float) -> None:
        """Make slots up to a number; those that it passes over become gaps with a time due."""
        first = self.highest + 1
        if number < first:
            return
        for gap in range(first, number):
            since = self._newest_s + (gap - first + 1) * self.pace_s
            self._due[gap] = since if first else now_s - (number - gap) * self.pace_s
        self._states += [SlotState.WAITING] * (number + 1 - first)
        self._newest_s = now_s

    def _resolve(self, number: int, state: SlotState) -> None:
        self._states[number] = state
        self._due.pop(number, None)

    def _give_up(self, number: int, now_s: float) -> Fault:
        self._resolve(number, SlotState.MISSING)
        return self._told(FaultKind.MISSING, number, now_s)

    def _silence(self, now_s: float, coming: int | None) -> list[Fault]:
        """A stall, once for each time that nothing comes."""
        following = self.highest + 1
        arriving = following if coming is None else coming
        if self._stalled or following in (0, self.volumes) or arriving < following:
            return []
        silent_trs = (now_s - self._newest_s) / self.pace_s - (arriving - following)
        if silent_trs <= 1 + self.patience.stall_trs:
            return []
        self._stalled = True
        detail = f"nothing for {silent_trs:.1f} TRs"
        return [self._told(FaultKind.STALL, following, now_s, detail)]

    def _order(self, frame: Frame) -> list[Fault]:
        """What the time and the order of an arrival show; the frame's slot is there afterwards."""
        number, highest = frame.number, self.highest
        if number > highest:
            due_s = self._newest_s + (number - highest) * self.pace_s
            excused = self._stalled or highest < 0  # a stall is told already
            self._stalled = False
            self._reach(number, frame.arrived_s)
            return [] if excused else self._lateness(frame, due_s)
        faults = [self._fault(FaultKind.OUT_OF_ORDER, frame)]
        if self._states[number] is SlotState.MISSING:
            return [*faults, self._fault(FaultKind.LATE, frame, "after it was given up")]
        return faults + self._lateness(frame, self._due.get(number, frame.arrived_s))

    def _lateness(self, frame: Frame, due_s: float) -> list[Fault]:
        overdue_trs = (frame.arrived_s - due_s) / self.pace_s
        if overdue_trs <= self.patience.late_trs:
            return []
        return [self._fault(FaultKind.LATE, frame, f"by {overdue_trs:.1f} TRs")]

    def _measure(self, frame: Frame) -> list[Fault]:
        """Whether a frame is as large as those before it; its slot says so afterwards."""
        if self._extent is None:
            self._extent = Extent.of(frame)
        elif self._extent.outgrown_by(frame):
            fewer = f"{self._extent.shape[2]} of {frame.data.shape[2]} slices"
            self._extent = Extent.of(frame)
            self._headers = HeaderWatch(self.tr_s)
            faults = self._retract(frame, fewer)
            self._resolve(frame.number, SlotState.RECEIVED)
            return faults
        elif refused := self._extent.refuses(frame):
            self._resolve(frame.number, SlotState.PARTIAL)
            return [self._fault(refused[0], frame, refused[1])]
        self._resolve(frame.number, SlotState.RECEIVED)
        return []

    def _retract(self, frame: Frame, detail: str) -> list[Fault]:
        """All that were received so far had too few slices."""
        short = [n for n, state in enumerate(self._states) if state is SlotState.RECEIVED]
        for number in short:
            self._states[number] = SlotState.PARTIAL
        return [self._told(FaultKind.SHORT, n, frame.arrived_s, detail) for n in short]
