"""How one text is to be written, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InputError
from .grammar import json_grammar
from .sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How an answer is written; by default the likeliest tokens, up to the bundle's limit."""

    max_tokens: int | None = None
    """Most tokens; None for the bundle's limit."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are no part of it, besides the template's."""
    deadline_s: float | None = None
    """Seconds from the call after which the answer ends, at a whole word, and is marked as cut."""
    sampling: Sampling = field(default_factory=Sampling)
    schema: Mapping[str, Any] | str | None = None
    """A JSON schema that the answer keeps."""
    grammar: str | None = None
    """A grammar in llama.cpp's GBNF that the answer keeps; instead of a schema."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"'max_tokens' must be at least 1; got {self.max_tokens}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError(f"'stop' must be strings that are not empty; got {self.stop!r}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise InputError(f"'deadline_s' must be above 0 seconds; got {self.deadline_s}")
        if self.schema is not None and self.grammar is not None:
            raise InputError("'schema' and 'grammar' are both given; give one of them")

    @property
    def rules(self) -> str | None:
        """The grammar that the answer keeps, None without one."""
        return self.grammar if self.schema is None else json_grammar(self.schema)
