"""What is wanted of one volume, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import InputError

TASKS = ("preview", "caption", "describe", "prompt", "image")
TEXT_TASKS = ("caption", "describe", "prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One decode, as the caller of `Decoder.decode` words it."""

    tasks: tuple[str, ...] = ("caption", "image")
    """Of preview, caption, describe, prompt, image."""
    ask: tuple[str, ...] = ()
    """Questions about the volume."""
    prompt: str = "written"
    """What conditions the image: written (by the language model), caption, none, or a text."""
    steps: int | None = None
    """Denoising steps; None for the bundle's."""
    seed: int = 0
    candidates: int = 1
    """Pictures to make, with this seed and the next ones; the one that fits the CLIP vector best is
    kept."""
    intermediate: int = 0
    """Show the guess after every so many denoising steps; 0 for never."""
    deadline_s: float | None = None
    """Seconds from the call to the last answer."""
    locate: tuple[str, ...] = ()
    """Concepts whose place is wanted."""
    token_log_probs: bool = False
    """Whether the result keeps the log-probability of every token."""
    pauses: bool = False
    """Whether the stream says where other volumes may be decoded before it goes on."""

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise InputError(f"'tasks' must be of {', '.join(TASKS)}; got {task!r}")
        if not self.tasks and not self.ask and not self.locate:
            raise InputError(f"nothing to do: 'tasks' is empty; name some of {', '.join(TASKS)}")
        if any(not question.strip() for question in self.ask):
            raise InputError("'ask' holds an empty question")
        for text in (*self.ask, self.prompt):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"{text!r} is not valid UTF-8; type it in a UTF-8 terminal")
        if self.seed < 0:
            raise InputError(f"'seed' must be at least 0; got {self.seed}")
        if self.candidates < 1:
            raise InputError(f"'candidates' must be at least 1; got {self.candidates}")
        if self.intermediate < 0:
            raise InputError(f"'intermediate' must be at least 0; got {self.intermediate}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise InputError(f"'deadline_s' must be above 0 seconds; got {self.deadline_s}")

    @property
    def texts(self) -> tuple[str, ...]:
        """Text tasks in order, with one that only the image needs at the end."""
        asked = [task for task in TEXT_TASKS if task in self.tasks]
        needed = {"written": "prompt", "caption": "caption"}.get(self.prompt)
        if "image" in self.tasks and needed and needed not in asked:
            asked.append(needed)
        return tuple(asked)

    @property
    def given_prompt(self) -> str:
        """The caller's own text for the image; "" if it is none, or written by the model."""
        return "" if self.prompt in ("written", "caption", "none") else self.prompt

    @property
    def needs_language(self) -> bool:
        """Whether any text has to be written."""
        return bool(self.texts or self.ask)

    @property
    def needs_pictures(self) -> bool:
        """Whether any picture has to be made."""
        return "image" in self.tasks or "preview" in self.tasks


def task_list(tasks: str | Iterable[str]) -> tuple[str, ...]:
    """Tasks without repetition, from a sequence or from "caption,image"."""
    names = tasks.split(",") if isinstance(tasks, str) else tasks
    return tuple(dict.fromkeys(name.strip() for name in names))
