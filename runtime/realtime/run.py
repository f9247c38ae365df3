"""A real-time run from its opening to its summary.

with Decoder.open("reference") as decoder:
    summary = Run(decoder, request, config).play()
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from ... import __version__
from ..decoder import Decoder
from ..errors import InputError
from .answering import Answering
from .arrivals import Arrivals
from .beta_scale import BetaScale
from .calm_blas import calm_blas
from .frozen_garbage import frozen_garbage
from .locked_memory import locked_memory
from .memory import Memory
from .run_folder import ANSWERS, RunFolder
from .run_setup import (
    RunRequest,
    golden_clip,
    header_of,
    make_intake,
    open_markers,
    read_stimuli,
)
from .session import Session
from .session_config import SessionConfig
from .session_parts import Parts
from .sink_opening import Outgoing, check_sink, open_outlet
from .sinks import JsonLines, Sink, Sinks
from .slot_state import Ending
from .slots import Slots
from .source import Source
from .source_opening import open_source
from .summary import summarise

_LIFE = 10_000_000
"""Messages of each life of a run are numbered from a multiple of this."""
_RECORD_CAPACITY = 1 << 14
"""Answers that may wait for the disk."""

Progress = Callable[[Session], None]


class Run:
    """A run whose parts are open. `play` it once.

    Parameters
    ----------
    decoder : Decoder
        Warm, so that deadlines can be planned. Used by the run alone until it is over.
    request : RunRequest
    config : SessionConfig
    clock : callable
        Seconds; of the source as well.
    source : callable, optional
        Makes another source than the request's, from what is remembered.

    Raises
    ------
    ScansideError
        Whatever cannot be used, in one sentence; then nothing has been changed.
    """

    def __init__(
        self,
        decoder: Decoder,
        request: RunRequest,
        config: SessionConfig,
        *,
        clock: Callable[[], float] = time.perf_counter,
        source: Callable[[Memory], Source] | None = None,
    ) -> None:
        self.decoder, self.request, self.config = decoder, request, config
        self.locked: bool | None = None
        """Whether the run's memory could be locked; None if it was not played here."""
        self._clock = clock

        def make_source(memory: Memory) -> Source:
            return source(memory) if source else open_source(request, config, memory, clock)

        self.folder = RunFolder(request.out)
        stimuli, wanted = read_stimuli(request, config)
        for sink in request.sinks:
            check_sink(sink, self._outgoing())
        intake = make_intake(decoder, request, config)
        shape = decoder.stages.preprocessor.geometry.shape
        self.scale = BetaScale.of_bundle(decoder.bundle, intake.elements, shape, request.former)
        header = header_of(request, config, decoder.bundle)
        self._open = ExitStack()
        try:
            # a new run's source and markers are refused before anything is written
            opened = None if self.folder.resumes else self._opened(make_source(Memory()))
            markers = open_markers(request)
            if markers:
                self._open.callback(markers.close)
            self.journal, past = self.folder.begin(header)
            self._open.callback(self.journal.close)
            self.memory = Memory(past.records if past else ())
            self.source = opened or self._opened(make_source(self.memory))
            if past:
                self.journal.append("resumed", torn_bytes=past.torn_bytes, **_setting(self))
            else:
                self.journal.append("began", **_setting(self))
                known = [[one.onset_s, one.duration_s, one.name] for one in stimuli]
                self.journal.append("events", events=known)
            self.folder.grid(intake.grid, intake.voxels)
            path = self.folder.path / ANSWERS
            self.record = Sink("answers", JsonLines(path), capacity=_RECORD_CAPACITY)
            self._open.callback(self.record.close)
            sinks: list[Sink] = []
            for text in request.sinks:
                sinks.append(Sink(text, open_outlet(text, self._outgoing())))
                self._open.callback(sinks[-1].close)
            self.sinks = Sinks(sinks, _LIFE * (self.memory.lives + bool(past)))
            slots = Slots(
                tr_s=config.tr_s,
                pace_s=config.pace_s,
                volumes=config.volumes,
                patience=config.patience,
            )
            self.session = Session(
                Parts(
                    config=config,
                    arrivals=Arrivals(self.source, slots, clock),
                    intake=intake,
                    scale=self.scale,
                    stimuli=stimuli,
                    wanted=wanted,
                    markers=markers,
                    live_events=request.live_events,
                    folder=self.folder,
                    journal=self.journal,
                    memory=self.memory,
                    record=self.record,
                    sinks=self.sinks,
                ),
                self._open_answering,
                clock,
            )
        except BaseException:
            self._open.close()
            self.folder.undo()
            raise

    def play(self, show: Progress | None = None) -> dict[str, Any]:
        """Run to the end.

        Parameters
        ----------
        show : callable, optional
            Called after every step, to show how it goes.

        Returns
        -------
        summary : dict
            As `summary.json` holds it.

        Raises
        ------
        InputError
            The first volume shows that the set-up is wrong, or none ever came; then nothing has
            been changed.
        """
        session = self.session
        try:
            with locked_memory() as self.locked, calm_blas(), frozen_garbage():
                while not session.ending:
                    session.step()
                    if show:
                        show(session)
            if session.ending is Ending.NEVER_BEGAN:
                raise InputError(
                    f"no volume came to {self.request.source} within "
                    f"{self.config.patience.begin_trs:g} TRs; check where the scanner writes"
                )
        except InputError:
            self._break_off()
            if not session.tally.of("volumes"):
                self.folder.undo()
            raise
        except BaseException:
            self._break_off()
            raise
        return self.finish()

    def finish(self) -> dict[str, Any]:
        """End a run that is over: wait for its last answers, write its summary."""
        self.session.finish()
        self.record.close()
        summary = summarise(self)
        self.sinks.put({"event": "end", "summary": summary})
        summary["sinks"] = [report.as_dict() for report in self.sinks.close()]
        if not self.folder.trouble and self.folder.finish(summary):
            self.folder.leave(self.scale.save)
        self.journal.append("end")
        self._open.close()
        return summary

    def _break_off(self) -> None:
        self.session.abandon()
        self._open.close()

    def _outgoing(self) -> Outgoing:
        return Outgoing(
            network=self.request.network,
            access=self.request.access,
            folder=self.folder.path,
            resumes=self.folder.resumes,
        )

    def _opened(self, source: Source) -> Source:
        self._open.callback(source.close)
        return source

    def _open_answering(self, on_event: Any, on_answer: Any) -> Answering:
        golden = golden_clip(self.decoder.bundle)
        return Answering(self.decoder, self.config, golden, on_event, on_answer, self._clock)


def _setting(run: Run) -> dict[str, Any]:
    """What may change from one life of a run to the next, as its journal holds it."""
    config, bundle = run.config, run.decoder.bundle
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "bundle": bundle.manifest.name,
        "device": run.decoder.device,
        "deadline_s": config.budget_s,
        "gate": config.gate,
        "speed": config.speed,
    }
