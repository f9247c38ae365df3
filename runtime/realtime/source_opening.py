"""Which source a run's operator means, and its opening.

`folder:DIR` and `file:PATH`, or either path by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .file_source import FileSource
from .folder_source import FolderSource
from .memory import Memory
from .session_config import SessionConfig
from .source import Source

if TYPE_CHECKING:
    from .run_setup import RunRequest

_PATHS = ("folder", "file")


def split_source(text: str) -> tuple[str, str]:
    """Kind of a source and where it is: a path."""
    kind, colon, rest = text.partition(":")
    if colon and kind in _PATHS:
        return kind, rest
    return ("file" if Path(text).is_file() else "folder"), text


def source_identity(text: str) -> str:
    """What names a source in a run's journal: the same for the same place, however it is worded."""
    kind, place = split_source(text)
    return f"{kind}:{Path(place).resolve()}"


def open_source(
    request: RunRequest, config: SessionConfig, memory: Memory, clock: Callable[[], float]
) -> Source:
    """The source; an InputError if it cannot be used."""
    kind, place = split_source(request.source)
    if kind == "file":
        return FileSource(place, pace_s=config.pace_s, at_once=memory.reached, clock=clock)
    try:
        return FolderSource(
            place,
            pace_s=config.pace_s,
            first_number=request.first_number,
            existing="take" if memory.resumed else request.existing,
            pattern=request.pattern,
            polling=request.polling,
            clock=clock,
        )
    except InputError as exc:
        if "already holds" in str(exc):
            raise InputError(
                f"{place} already holds a run; empty it, or say with '--existing' whether its "
                "files are of this run (take) or not (ignore)"
            ) from exc
        raise
