"""A real-time run: volumes come in, answers go out, and nothing makes the next volume wait.

    source -- slots -- Intake (registration, tokens, GLM) -- windows that close --+
       this thread                                                                 |
    sinks, folder, journal -- answers -- Decoder -- by rank and deadline ----------+
       the thread of `Answering`

One `step` waits for what arrives, takes it in, and submits the answers that it completes. Whatever
is wrong with what arrives is a fault that is told, written down and counted; a run goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InputError
from ..events import Event
from .answering import Answer, Answering, AnswerState, Job
from .attempt import Attempt
from .delivery import Delivery
from .frame import Frame
from .intake import Taken, UnusableVolume
from .live_markers import Marker
from .messages import fault_message, volume_message
from .schedule import Due
from .session_parts import Parts, Progress
from .slot_state import Ending
from .source import Fault, FaultKind
from .stimuli import Stimulus, read_marker
from .tally import Tally
from .time_axis import TimeAxis

_WAIT_TRS = 0.25
"""The longest that a step waits."""
_CATCHING_UP = 8
"""Answers that may wait while volumes come that were there before."""
_DRAIN_S = 60.0
"""How long answers may take once the run is over."""


class Session:
    """The loop.

    Parameters
    ----------
    parts : Parts
    open_answering : callable
        Makes the thread that decodes, from what is to be called for events and for answers.
    clock : callable
        Seconds; the source's.
    """

    def __init__(
        self,
        parts: Parts,
        open_answering: Callable[
            [Callable[[Job, Event], None], Callable[[Answer], None]], Answering
        ],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.parts = parts
        self.tally = Tally()
        self.progress = Progress()
        self._clock = clock
        self._began_s = clock()
        self._axis = TimeAxis(parts.config)
        self._pending: list[Marker] = []
        self._told_disk = threading.Event()
        self._stimuli: dict[tuple[int, int], Stimulus] = {}
        self._delivery = Delivery(parts, self.tally, self.progress, self._stimuli)
        self._place: Any = None
        self._attempt = self._new_attempt(0)
        for fault in parts.memory.faults:
            self.tally.fault(fault)
        self._delivery.bring_level()
        self._answering = open_answering(self._delivery.on_event, self._delivery.on_answer)

    @property
    def ending(self) -> Ending | None:
        """Why the run is over, None while it is not."""
        return self.parts.arrivals.ending

    @property
    def attempt(self) -> int:
        """How many attempts at the run were broken off before this one."""
        return self._attempt.number

    def step(self, timeout_s: float | None = None) -> None:
        """Wait for at most `timeout_s`, a quarter of the pace if None, and act on what has come.

        Raises
        ------
        InputError
            The first volume shows that the run was set up wrongly: its TR, or where it lies.
        """
        wait_s = _WAIT_TRS * self.parts.config.pace_s if timeout_s is None else timeout_s
        if self.parts.markers:
            self._pending += self.parts.markers.poll()
        for arrival in self.parts.arrivals.step(wait_s):
            self._take_markers()
            if isinstance(arrival, Fault):
                self._fault(arrival)
            else:
                self._frame(arrival)
        self._take_markers()
        self._watch_disk()
        if self.ending:
            for due in self._attempt.schedule.rest():
                self._close(due, self._clock(), catching_up=False)

    def settle(self, timeout_s: float = _DRAIN_S) -> bool:
        """Wait until every answer that is due has been given; False if that took too long."""
        return self._answering.wait(timeout_s)

    def finish(self) -> None:
        """Wait for the last answers; to be called once, when the run is over."""
        self._answering.close(_DRAIN_S)
        self._watch_disk()

    def abandon(self) -> None:
        """End the thread that decodes; what it has not answered stays open."""
        self._answering.abandon()

    def _new_attempt(self, number: int) -> Attempt:
        parts = self.parts
        attempt = Attempt(number, parts.config, parts.intake, parts.scale)
        attempt.add(parts.stimuli, parts.wanted)
        attempt.add(parts.memory.stimuli(number))
        for trial, stimulus in enumerate(attempt.stimuli):
            self._stimuli[number, trial] = stimulus
        if axis := parts.memory.axis(number):
            self._axis.restore(axis)
        return attempt

    def _frame(self, frame: Frame) -> None:
        was_open = self._axis.first is not None
        number = self._axis.number(frame)
        if number is None:
            self.tally.count("discarded")
            return
        if not was_open or number == 0:
            self.parts.journal.append("axis", **self._axis.as_record())
        attempt = self._attempt
        known = self.parts.memory.volume(attempt.number, frame.number)
        catching_up = known is not None or frame.arrived_s < self._began_s
        try:
            taken = attempt.take(frame, number, known)
        except UnusableVolume as exc:
            self._tell(FaultKind.UNUSABLE, frame.number, str(exc))
            return
        latency_s = self._clock() - frame.arrived_s
        if known is None:
            told = {} if catching_up else {"latency_ms": round(1e3 * latency_s, 2)}
            self.parts.journal.volume(frame.number, "taken", **taken.as_record(), **told)
            self.parts.sinks.put(volume_message(frame.number, taken, attempt.number))
        if not taken.registered:
            self._tell(FaultKind.UNREGISTERED, frame.number, "its place is that of the one before")
        self._note_place()
        if not catching_up:
            self.tally.latency("volume", latency_s)
        self.tally.count("spikes", int(taken.spike))
        self.tally.count("volumes")
        self._show(frame, taken, latency_s)
        for due in attempt.schedule.reach(number):
            self._close(due, frame.arrived_s, catching_up)
        if catching_up:
            self._answering.wait(_DRAIN_S, most=_CATCHING_UP)

    def _close(self, due: Due, closed_s: float, catching_up: bool) -> None:
        """Submit an answer, unless an earlier life has given it."""
        attempt, config = self._attempt, self.parts.config
        given = (attempt.number, due.trial, due.revision) in self.parts.memory.answers
        began_s = self._clock()
        lacks, signal, notes, beta = "", 0.0, (), None
        tokens = np.zeros((0, 0), np.float32)
        try:
            closed = attempt.close(due)  # what was answered before still enters the statistics
            tokens, signal, notes = closed.tokens, closed.signal, closed.notes
            beta = closed.values, closed.variance
        except InputError as exc:
            lacks = str(exc)
        if given:
            self._delivery.keep_beta(attempt.number, due.trial, due.revision, beta)
            return
        self.tally.latency("beta", self._clock() - began_s)
        deadline_s = None if catching_up else closed_s + config.budget_s
        job = Job(
            attempt=attempt.number,
            trial=due.trial,
            revision=due.revision,
            tokens=tokens,
            signal=signal,
            closed_s=closed_s,
            deadline_s=deadline_s,
            notes=notes,
            beta=beta,
        )
        if lacks:
            self._delivery.on_answer(
                Answer(job=job, state=AnswerState.IMPOSSIBLE, degraded=[lacks])
            )
            return
        self.parts.journal.trial(
            due.trial, due.revision, "closed", attempt=attempt.number, signal=round(signal, 6)
        )
        self._answering.submit(job)

    def _note_place(self) -> None:
        """Write down where the model lies in the world of the run, whenever that is found anew."""
        found = self.parts.intake.model_to_world
        if found is not None and found is not self._place:
            self._place = found
            matrix = found[:3].tolist()
            self.parts.journal.append("place", attempt=self.attempt, model_to_world=matrix)

    def _fault(self, fault: Fault) -> None:
        """Tell a fault, and do what it asks for."""
        if fault.kind is FaultKind.WRONG_TR and self.tally.of("volumes") == 0:
            raise InputError(f"the first volume does not fit: {fault.detail}; correct '--tr'")
        if fault.kind is FaultKind.RESTART:
            self._restart(fault)
        elif fault.kind is FaultKind.SHORT and fault.number is not None:
            if self._axis.first is not None:
                self._attempt.spoil(fault.number - self._axis.first)
        if not self.parts.memory.knows(fault, self._attempt.number):
            self.tally.fault(fault)
            message = fault_message(fault, self._attempt.number)
            self.parts.journal.append(
                "fault", **{"fault" if k == "kind" else k: v for k, v in message.items()}
            )
            self.parts.sinks.put(message)
            self.progress.fault = fault

    def _restart(self, fault: Fault) -> None:
        number = self._attempt.number + 1
        if not self.parts.memory.attempts > number:
            self.parts.journal.append("restart", attempt=number, series=fault.series)
        self._axis.begin()
        self._attempt = self._new_attempt(number)
        self.progress.newest = -1

    def _tell(self, kind: FaultKind, number: int | None, detail: str) -> None:
        self._fault(Fault(kind=kind, number=number, detail=detail, seen_s=self._clock()))

    def _take_markers(self) -> None:
        """Markers whose time in the run is known become trials."""
        config = self.parts.config
        waiting, self._pending = self._pending, []
        for marker in waiting:
            if config.trigger is not None and marker.text.strip() == config.trigger:
                self._axis.trigger(marker.at_s)
                continue
            if not self.parts.live_events:
                continue
            onset_s = self._axis.onset_s(marker.at_s)
            if onset_s is None:
                self._pending.append(marker)
                continue
            stimulus = read_marker(marker.text, config.marker_duration_s)
            if stimulus is not None and onset_s >= 0:
                self._add_live(
                    Stimulus(onset_s=onset_s, duration_s=stimulus.duration_s, name=stimulus.name)
                )

    def _add_live(self, stimulus: Stimulus) -> None:
        attempt = self._attempt
        try:
            attempt.add([stimulus])
        except InputError as exc:
            self._tell(FaultKind.LATE_MARKER, None, str(exc))
            return
        self._stimuli[attempt.number, len(attempt.stimuli) - 1] = stimulus
        self.parts.journal.append(
            "event",
            attempt=attempt.number,
            onset_s=stimulus.onset_s,
            duration_s=stimulus.duration_s,
            name=stimulus.name,
        )

    def _watch_disk(self) -> None:
        """Once something cannot be written, write nothing more and say so once."""
        parts = self.parts
        trouble = parts.folder.trouble or parts.journal.trouble or parts.record.report().trouble
        if trouble and not self._told_disk.is_set():
            self._told_disk.set()
            parts.folder.trouble = trouble
            self._tell(FaultKind.DISK, None, f"{trouble}; decoding goes on, nothing is written")

    def _show(self, frame: Frame, taken: Taken, latency_s: float) -> None:
        progress = self.progress
        progress.received += 1
        progress.newest = max(progress.newest, frame.number)
        progress.last_arrived_s = frame.arrived_s
        progress.taken, progress.latency_s = taken, latency_s
