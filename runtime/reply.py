"""One answer of a conversation, with how sure the model was and what was shortened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .result import AnsweredQuestion, TokenScore, rounded, scores_as_dicts

_REACHED = {"length": "limit of tokens", "context": "end of the context"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer of a conversation; as a string it is its text."""

    question: str
    text: str
    finish: str
    """Why it ended: end, stop (a stop string), length, context, or deadline."""
    log_prob: float | None
    """Mean natural log-probability of its tokens; None if the deadline came before the first."""
    tokens: tuple[TokenScore, ...]
    """Every token with its log-probability."""
    forgotten: tuple[AnsweredQuestion, ...] = ()
    """Turns, the oldest ones, that the full context left no room for."""
    latency_ms: dict[str, float] = field(default_factory=dict[str, float])
    """first_token and total, from the call."""

    def __str__(self) -> str:
        return self.text

    @property
    def degraded(self) -> list[str]:
        """What was shortened or forgotten, a sentence each."""
        found: list[str] = []
        if self.forgotten:
            count = len(self.forgotten)
            turns = "the oldest turn is" if count == 1 else f"the {count} oldest turns are"
            found.append(f"{turns} forgotten, for the context is full")
        if self.finish == "deadline":
            found.append("the answer is cut by the deadline")
        if self.finish in ("length", "context"):
            found.append(f"the answer is cut, for it reached the {_REACHED[self.finish]}")
        return found

    def as_dict(self, *, tokens: bool = False) -> dict[str, Any]:
        """The reply as JSON holds it, with every token's log-probability if asked for."""
        document: dict[str, Any] = {
            "question": self.question,
            "answer": self.text,
            "finish": self.finish,
            "log_prob": None if self.log_prob is None else rounded(self.log_prob),
            "latency_ms": {name: round(ms, 3) for name, ms in self.latency_ms.items()},
            "degraded": self.degraded,
        }
        return document | ({"token_log_probs": scores_as_dicts(self.tokens)} if tokens else {})
