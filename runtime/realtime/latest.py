"""The latest state of a run, made of its messages: what a consumer that comes late gets first.

    {"event": "state", "seq": 412, "volume": {...}, "answer": {...}, "preview": {...},
     "text": {"attempt": 0, "trial": 3, "revision": 0, "caption": "a red ci"}, "fault": {...}}

`seq` is the number of the last message that it knows, null before the first; what stands under a
name is the newest message of that kind. `text` is what has been written of the answer in progress.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_KINDS = ("volume", "preview", "answer", "fault", "end")
_ABOUT = ("attempt", "trial", "revision")


class Latest:
    """Keeps the newest message of each kind. For one thread."""

    def __init__(self) -> None:
        self._seq: int | None = None
        self._newest: dict[str, Mapping[str, Any]] = {}
        self._text: dict[str, Any] = {}

    def take(self, message: Mapping[str, Any]) -> None:
        """Take in a message, its number included."""
        self._seq = message.get("seq")
        event = message.get("event")
        if event == "token":
            about = {name: message.get(name) for name in _ABOUT}
            if about.items() - self._text.items():
                self._text = about
            task = str(message.get("task"))
            self._text[task] = self._text.get(task, "") + str(message.get("text"))
        elif event in _KINDS:
            self._newest[event] = message
            if event == "answer":
                self._text = {}

    def state(self) -> dict[str, Any]:
        """What is known now, as JSON can say it."""
        text = {"text": self._text} if self._text else {}
        return {"event": "state", "seq": self._seq, **self._newest, **text}

    def as_json(self) -> str:
        """The state in one line."""
        return json.dumps(self.state(), ensure_ascii=False, allow_nan=False)
