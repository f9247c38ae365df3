"""What is to be said of a run that is over; every fault is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .answering import AnswerState

if TYPE_CHECKING:
    from .run import Run


def summarise(run: Run) -> dict[str, Any]:
    """The summary of a run.

    Returns
    -------
    summary : dict
        bundle, device, tr_s, discard, ending, resumed; volumes: planned, received, missing,
        partial, discarded, spikes; faults by kind: count, volumes (from 0), detail;
        former_attempts; answers by state; missed_deadlines; latency_ms by stage: count, p50, p95,
        p99, max; motion_correction; notes.
    """
    session, config, tally = run.session, run.config, run.session.tally
    slots = session.parts.arrivals.slots
    last = slots.summary()
    return {
        "bundle": run.decoder.bundle.sha256,
        "device": run.decoder.device,
        "tr_s": config.tr_s,
        "discard": config.discard,
        "ending": str(session.ending),
        "resumed": run.memory.lives + int(run.memory.resumed),
        "volumes": {
            "planned": config.volumes,
            "received": last.received,
            "missing": list(last.missing),
            "partial": list(last.partial),
            "discarded": tally.of("discarded"),
            "spikes": tally.of("spikes"),
        },
        "faults": tally.faults(),
        "former_attempts": [asdict(attempt) for attempt in slots.former],
        "answers": {str(state): tally.of(f"answers {state}") for state in AnswerState}
        | {"withheld": tally.of("answers withheld")},
        "missed_deadlines": tally.of("missed deadlines"),
        "latency_ms": tally.latency_ms(),
        "motion_correction": config.correct_motion,
        "notes": _notes(run),
    }


def _notes(run: Run) -> list[str]:
    notes: list[str] = []
    if not run.config.correct_motion:
        notes.append("motion was not corrected: expect worse answers wherever the head moved")
    if run.locked is False:
        notes.append("memory was not locked ('ulimit -l unlimited' allows it): volumes may stall")
    if run.folder.trouble:
        notes.append(f"{run.folder.trouble}; what followed was decoded and not written")
    return notes


def readable(summary: Mapping[str, Any]) -> str:
    """The summary in lines for a person."""
    volumes, answers = summary["volumes"], summary["answers"]
    lines = [
        f"run: {summary['ending']}, {volumes['received']} of {volumes['planned']} volumes, "
        f"{volumes['spikes']} spikes" + (", resumed" if summary["resumed"] else ""),
        "answers: " + ", ".join(f"{count} {state}" for state, count in answers.items() if count),
        f"missed deadlines: {summary['missed_deadlines']}",
    ]
    for kind, fault in summary["faults"].items():
        named = ", ".join(str(number) for number in fault["volumes"][:12])
        more = " ..." if len(fault["volumes"]) > 12 else ""
        where = f", volumes {named}{more}" if named else ""
        detail = f" ({fault['detail']})" if "detail" in fault else ""
        lines.append(f"fault: {kind} x {fault['count']}{where}{detail}")
    for stage, ms in summary["latency_ms"].items():
        lines.append(f"{stage}: p50 {ms['p50']:.0f}, p99 {ms['p99']:.0f}, max {ms['max']:.0f} ms")
    lines += summary["notes"]
    return "\n".join(lines)
