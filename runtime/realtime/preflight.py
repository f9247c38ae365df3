"""Whether a run could begin now: source, events, sinks, disk and time, one line for each.

Everything is tried on the real thing, and nothing of it is changed. The budget is measured: a
volume of the run's own grid goes through registration, tokens and fit, and one answer is decoded.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..decoder import Decoder
from ..errors import InputError, ScansideError
from .attempt import Attempt
from .beta_scale import BetaScale
from .file_source import FileSource
from .folder_source import FolderSource
from .frame import Frame
from .locked_memory import may_lock
from .memory import Memory
from .run_file import open_run
from .run_folder import RunFolder
from .run_setup import (
    RunRequest,
    make_intake,
    open_markers,
    read_stimuli,
)
from .session_config import SessionConfig
from .simulated_run import SimulatedRun, Simulation
from .sink_opening import Outgoing, try_sink
from .source_opening import open_source, source_identity, split_source

_GRID = (64, 64, 36)
"""Assumed of a folder that holds nothing yet."""
_ANSWER_BYTES = 200_000
"""Most that one answer and its pictures take."""
_VOLUME_BYTES = 1_000
"""And the journal's lines about one volume."""
_TRIED = 12
"""Volumes that the budget is measured on."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a preflight."""

    name: str
    fine: bool
    found: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.fine else 'FAIL'} {self.name:<7} {self.found}"


def preflight(decoder: Decoder, request: RunRequest, config: SessionConfig) -> Iterator[Check]:
    """Check a run; each line as soon as it is known.

    Parameters
    ----------
    decoder : Decoder
        Warm.
    request : RunRequest
    config : SessionConfig
    """
    checks: dict[str, Callable[[], str]] = {
        "source": lambda: _source(request, config),
        "events": lambda: _events(request, config),
        "sinks": lambda: _sinks(request),
        "disk": lambda: _disk(request, config),
        "budget": lambda: _budget(decoder, request, config),
    }
    for name, check in checks.items():
        try:
            yield Check(name, True, check())
        except (ScansideError, OSError) as exc:
            yield Check(name, False, str(exc))


def _source(request: RunRequest, config: SessionConfig) -> str:
    resumes = RunFolder(request.out).resumes
    memory = Memory([{"kind": "resumed"}] if resumes else [])
    with closing(open_source(request, config, memory, time.perf_counter)) as source:
        planned = f"{config.volumes} volumes of {config.tr_s:g} s"
        if isinstance(source, FileSource):
            x, y, z = source.run.shape
            return f"{planned}, {x} x {y} x {z}, from {source.run.path}"
        again = "; goes on with the run that was broken off" if resumes else ""
        if not isinstance(source, FolderSource):
            return f"{planned} expected at {source_identity(request.source)}{again}"
        _, path = split_source(request.source)
        held = sum(entry.is_file() for entry in Path(path).iterdir())
        state = "empty" if not held else f"holds {held} files ({request.existing})"
        return f"{planned} expected in {path}, which is {state}{again}"


def _events(request: RunRequest, config: SessionConfig) -> str:
    markers = open_markers(request)
    trigger = ""
    if markers is not None:
        markers.close()
        trigger = f", the run begins at {config.trigger!r}" if config.trigger else ""
    if request.live_events:
        return f"live markers from {request.events}{trigger}"
    stimuli, wanted = read_stimuli(request, config)
    count = len(stimuli if wanted is None else wanted)
    onsets = [stimulus.onset_s for stimulus in stimuli]
    return (
        f"{count} of {len(stimuli)} trials are answered, onsets {min(onsets):g} to "
        f"{max(onsets):g} s of {config.kept * config.tr_s:g} s{trigger}"
    )


def _sinks(request: RunRequest) -> str:
    outgoing = Outgoing(
        network=request.network, access=request.access, resumes=RunFolder(request.out).resumes
    )
    for sink in request.sinks:
        try_sink(sink, outgoing)
    return ", ".join(request.sinks) if request.sinks else "none but the run's own folder"


def _disk(request: RunRequest, config: SessionConfig) -> str:
    RunFolder(request.out)
    there = next(p for p in (request.out, *request.out.absolute().parents) if p.exists())
    if not os.access(there, os.W_OK):
        raise InputError(f"{there} cannot be written; name another folder with '--out'")
    stimuli, wanted = read_stimuli(request, config)
    trials = len(stimuli if wanted is None else wanted) or config.volumes
    needed = 2 * trials * _ANSWER_BYTES + config.volumes * _VOLUME_BYTES
    free = shutil.disk_usage(there).free
    if free < needed:
        raise InputError(
            f"{free / 1e6:.0f} MB are free at {there}, the run may take {needed / 1e6:.0f} MB; "
            "make room or name another folder"
        )
    return f"{free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed"


def _budget(decoder: Decoder, request: RunRequest, config: SessionConfig) -> str:
    shape = _shape(request)
    simulated = SimulatedRun(
        Simulation(shape=shape, volumes=_TRIED, tr_s=config.tr_s, gap_s=_TRIED * config.tr_s)
    )
    intake = make_intake(decoder, request, config)
    scale = BetaScale.of_bundle(
        decoder.bundle, intake.elements, decoder.stages.preprocessor.geometry.shape, request.former
    )
    attempt = Attempt(0, config, intake, scale)
    volume_s: list[float] = []
    for number, data in enumerate(simulated.volumes()):
        began_s = time.perf_counter()
        frame = Frame(
            number=number,
            data=data,
            affine=simulated.affine,
            series="preflight",
            arrived_s=began_s,
        )
        attempt.take(frame, number, None)
        volume_s.append(time.perf_counter() - began_s)
    tokens = np.zeros(decoder.stages.preprocessor.geometry.shape, np.float32)
    began_s = time.perf_counter()
    result = decoder.decode(
        tokens,
        config.tasks,
        seed=config.seed,
        deadline_s=config.budget_s,
        steps=config.steps,
        prompt=config.prompt,
    )
    answer_s = time.perf_counter() - began_s
    most_s = max(volume_s[1:])
    found = (
        f"a volume of {' x '.join(map(str, shape))} takes {1e3 * most_s:.0f} ms, an answer "
        f"{1e3 * answer_s:.0f} ms of {1e3 * config.budget_s:.0f} ms"
        f"{'' if may_lock() else '; memory cannot be locked (ulimit -l unlimited)'}"
    )
    if most_s + answer_s > min(config.budget_s, config.pace_s) or result.degraded:
        why = "; ".join(result.degraded) or "that does not fit into one TR"
        raise InputError(f"{found}: {why}; ask for less (--task, --steps) or allow more")
    return found


def _shape(request: RunRequest) -> tuple[int, int, int]:
    kind, path = split_source(request.source)
    return open_run(Path(path)).shape if kind == "file" else _GRID
