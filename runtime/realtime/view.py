"""The run on a terminal: one block of lines, written over after every step; silent in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from .session import Session
from .source import Fault

_EVERY_S = 0.25
_WIDTH = 100


class View:
    """Shows how a run goes.

    Parameters
    ----------
    stream : text file, optional
        Written to if it is a terminal; standard error if None.
    clock : callable
        Seconds; the session's.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._shown = 0
        self._next_s = 0.0

    def __call__(self, session: Session) -> None:
        """Show the state of a session, a few times a second at most."""
        now_s = self._clock()
        if not self._stream.isatty() or (now_s < self._next_s and not session.ending):
            return
        self._next_s = now_s + _EVERY_S
        found = lines(session, now_s)
        up = f"\x1b[{self._shown}F" if self._shown else ""
        body = "".join(f"\x1b[2K{line[:_WIDTH]}\n" for line in found)
        self._stream.write(up + body)
        self._stream.flush()
        self._shown = len(found)


def lines(session: Session, now_s: float) -> list[str]:
    """What there is to see.

    Parameters
    ----------
    session : Session
    now_s : float
        On the session's clock.
    """
    progress, config = session.progress, session.parts.config
    return [
        _volumes(session, now_s),
        _motion(session),
        f"latency  {1e3 * progress.latency_s:5.0f} ms of {1e3 * config.pace_s:.0f} ms TR  "
        f"{_bar(progress.latency_s / config.pace_s)}   missed deadlines "
        f"{session.tally.of('missed deadlines')}",
        _latest(progress.latest),
        _fault(progress.fault),
        _connections(session),
    ]


def _volumes(session: Session, now_s: float) -> str:
    progress, config = session.progress, session.parts.config
    since = "waiting for the first"
    if progress.last_arrived_s is not None:
        since = f"last {max(0.0, now_s - progress.last_arrived_s):.1f} s ago"
    attempt = session.attempt + 1
    again = f"  attempt {attempt}" if attempt > 1 else ""
    return f"volume   {progress.newest + 1} of {config.volumes}, {since}{again}"


def _motion(session: Session) -> str:
    taken = session.progress.taken
    if not session.parts.config.correct_motion:
        return "motion   not corrected"
    if taken is None:
        return "motion   -"
    shift, turn = taken.parameters[:3], np.degrees(taken.parameters[3:])
    return (
        f"motion   {np.linalg.norm(shift):.2f} mm  {np.abs(turn).max():.2f} deg  "
        f"moved {taken.displacement_mm:.2f} mm  spikes {session.tally.of('spikes')}"
    )


def _latest(message: dict[str, Any] | None) -> str:
    if message is None:
        return "answer   -"
    confidence = message.get("confidence", {}).get("value")
    sure = "" if confidence is None else f" ({confidence:.2f}{', withheld' * message['withheld']})"
    said = message.get("caption") or message["state"]
    return f"answer   trial {message['trial']} {message['window']}{sure}: {said}"


def _fault(fault: Fault | None) -> str:
    return "fault    -" if fault is None else f"fault    {fault.kind}: {fault.detail}"


def _connections(session: Session) -> str:
    parts = session.parts
    trouble = parts.folder.trouble
    found = [f"disk {'full' if trouble else 'ok'}"]
    for report in parts.sinks.reports():
        state = report.trouble or f"sent {report.sent}"
        found.append(
            f"{report.name} {state}" + f", dropped {report.dropped}" * bool(report.dropped)
        )
    return "sinks    " + "; ".join(found)


def _bar(share: float) -> str:
    filled = min(20, round(20 * share))
    return "[" + "#" * filled + "." * (20 - filled) + "]"
