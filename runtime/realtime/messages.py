"""What is told about a run, as JSON objects.

| event | when | holds |
|---|---|---|
| `preview` | it is decoded | attempt, trial, revision, preview (path) |
| `token` | text grows | attempt, trial, revision, task, text |
| `answer` | an answer is there, or will never be | below |
| `volume` | one is taken in | attempt, volume, motion, displacement_mm, dvars, spike |
| `fault` | anything goes wrong | kind, volume, detail |
| `end` | the run is over | the summary |

Trials and volumes count from 0, in the events file and on the scanner; paths are relative to the
run's folder. `motion` is three shifts in millimetres and three angles in radians, of the head since
the first volume, along and about right, anterior and superior.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..result import rounded
from .answering import Answer, Job
from .intake import Taken
from .source import Fault
from .stimuli import Stimulus

WINDOWS = ("fast", "refined")
_CONTENT = ("caption", "description", "prompt", "log_prob", "preview", "image", "steps")


def about(job: Job) -> dict[str, Any]:
    """Which answer a message is about."""
    return {"attempt": job.attempt, "trial": job.trial, "revision": job.revision}


def file_name(job: Job, kind: str) -> str:
    """Name of a picture of an answer."""
    attempt = f"attempt-{job.attempt}-" if job.attempt else ""
    return f"{attempt}trial-{job.trial:04d}-{WINDOWS[job.revision]}-{kind}"


def answer_message(
    answer: Answer, stimulus: Stimulus, files: Mapping[str, str | None], gate: float | None
) -> dict[str, Any]:
    """The record of an answer.

    Returns
    -------
    message : dict
        event, attempt, trial, revision, window, trial_type, onset_s, state, what was decoded
        (caption, description, prompt, log_prob, preview, image, steps), confidence, withheld,
        degraded, latency_ms, missed_deadline.
    """
    message: dict[str, Any] = {
        "event": "answer",
        **about(answer.job),
        "window": WINDOWS[answer.job.revision],
        "trial_type": stimulus.name,
        "onset_s": stimulus.onset_s,
        "state": str(answer.state),
    }
    if (result := answer.result) is not None:
        found: dict[str, Any] = {
            "caption": result.caption,
            "description": result.description,
            "prompt": result.prompt,
            "log_prob": {name: rounded(mean) for name, mean in result.log_prob.items()} or None,
            "preview": files.get("preview"),
            "image": files.get("image"),
            "steps": result.steps,
        }
        message |= {name: value for name, value in found.items() if value is not None}
    if (confidence := answer.confidence) is not None:
        message["confidence"] = confidence.as_dict()
        message["withheld"] = gate is not None and confidence.value < gate
    message["degraded"] = answer.degraded
    message["latency_ms"] = {k: round(1e3 * s, 2) for k, s in answer.latency_s.items()}
    message["missed_deadline"] = answer.missed
    return message


def feedback(message: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as consumers get it: one that is withheld says so, and nothing else."""
    if not message.get("withheld"):
        return dict(message)
    return {key: value for key, value in message.items() if key not in _CONTENT}


def volume_message(number: int, taken: Taken, attempt: int) -> dict[str, Any]:
    """A volume that is in the fit.

    Parameters
    ----------
    number : int
        The scanner's.
    taken : Taken
    attempt : int
    """
    return {
        "event": "volume",
        "attempt": attempt,
        "volume": number,
        "motion": [round(value, 5) for value in taken.parameters.tolist()],
        "displacement_mm": round(taken.displacement_mm, 4),
        "dvars": round(taken.dvars, 4),
        "spike": taken.spike,
    }


def fault_message(fault: Fault, attempt: int) -> dict[str, Any]:
    """A fault as consumers get it."""
    found = {
        "event": "fault",
        "kind": str(fault.kind),
        "attempt": attempt,
        "volume": fault.number,
        "series": fault.series,
        "detail": fault.detail,
    }
    return {key: value for key, value in found.items() if value not in (None, "")}
