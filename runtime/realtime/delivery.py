"""Where answers go: written ahead, counted, to the record and the sinks, each of them once.

Everything but `bring_level` is called on the thread that decodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..events import Event, Image, Preview, Token
from .answering import Answer, Job
from .messages import about, answer_message, feedback, file_name
from .session_parts import Parts, Progress
from .stimuli import Stimulus
from .tally import Tally


class Delivery:
    """Hands out what the decoder makes.

    Parameters
    ----------
    parts : Parts
    tally : Tally
    progress : Progress
        Gets the last answer.
    stimuli : mapping
        By attempt and trial; it grows while the run goes on.
    """

    def __init__(
        self,
        parts: Parts,
        tally: Tally,
        progress: Progress,
        stimuli: Mapping[tuple[int, int], Stimulus],
    ) -> None:
        self._parts, self._tally, self._progress = parts, tally, progress
        self._stimuli = stimuli
        self._files: dict[tuple[int, int, int], dict[str, str | None]] = {}

    def bring_level(self) -> None:
        """Give out what an earlier life had answered and not written."""
        written = {(r["attempt"], r["trial"], r["revision"]) for r in self._parts.folder.answers()}
        for key, message in self._parts.memory.answers.items():
            self._tally.count(f"answers {message['state']}")
            self._tally.count("answers withheld", int(bool(message.get("withheld"))))
            self._tally.count("missed deadlines", int(message["missed_deadline"]))
            if key not in written:
                self._give_out(message)

    def on_event(self, job: Job, event: Event) -> None:
        """On the thread that decodes: what can be shown before the answer is complete."""
        open_gate = self._parts.config.gate is None
        if isinstance(event, Preview | Image):
            kind = "preview" if isinstance(event, Preview) else "image"
            provenance: Mapping[str, object] = {"kind": kind, **about(job)}
            path = self._parts.folder.picture(file_name(job, kind), event.image, provenance)
            files = self._files.setdefault((job.attempt, job.trial, job.revision), {})
            files[kind] = path
            if kind == "preview" and open_gate:
                self._parts.sinks.put({"event": "preview", **about(job), "preview": path})
        elif isinstance(event, Token) and open_gate:
            self._parts.sinks.put(
                {"event": "token", **about(job), "task": event.task, "text": event.text}
            )

    def on_answer(self, answer: Answer) -> None:
        """On the thread that decodes: an answer is complete, or will never be."""
        job = answer.job
        files = self._files.pop((job.attempt, job.trial, job.revision), {})
        stimulus = self._stimuli[job.attempt, job.trial]
        message = answer_message(answer, stimulus, files, self._parts.config.gate)
        self._parts.journal.append("answer", message=message)
        self._tally.count(f"answers {answer.state}")
        self._tally.count("answers withheld", int(bool(message.get("withheld"))))
        if job.deadline_s is not None:
            self._tally.count("missed deadlines", int(answer.missed))
            for stage, seconds in answer.latency_s.items():
                self._tally.latency(f"answer {stage}", seconds)
        self._give_out(message)
        self.keep_beta(job.attempt, job.trial, job.revision, job.beta)

    def keep_beta(
        self, attempt: int, trial: int, revision: int, beta: tuple[Any, Any] | None
    ) -> None:
        """Keep it for derivatives: after the answer has gone out, so that it costs no feedback."""
        if beta is not None:
            self._parts.folder.beta((attempt, trial, revision), *beta)

    def _give_out(self, message: dict[str, Any]) -> None:
        self._parts.record.put(json.dumps(message, ensure_ascii=False, allow_nan=False))
        self._parts.sinks.put(feedback(message))
        self._progress.latest = message
