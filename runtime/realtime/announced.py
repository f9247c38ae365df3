"""Pictures that messages have named: only these leave the run's folder, under the names they have.

A message holds the paths of its pictures relative to the folder of the run. A picture whose answer
is withheld is named in no message, so nobody can ask for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KEYS = ("preview", "image")
_NAME = re.compile(r"pictures/[A-Za-z0-9][A-Za-z0-9._-]*\.png")
_MOST_BYTES = 16 << 20
"""A larger file is not one of ours."""


class Announced:
    """Pictures of a run, as far as consumers know of them.

    Parameters
    ----------
    folder : Path, optional
        Of the run; without one there are no pictures.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._names: set[str] = set()

    def take(self, message: Mapping[str, Any]) -> list[tuple[str, bytes]]:
        """Names and PNG bytes of the pictures that this message is the first to name."""
        found: list[tuple[str, bytes]] = []
        if self._folder is None or message.get("event") not in ("preview", "answer"):
            return found
        for key in _KEYS:
            name = message.get(key)
            if not isinstance(name, str) or name in self._names or not _NAME.fullmatch(name):
                continue
            if (content := self._read(name)) is not None:
                self._names.add(name)
                found.append((name, content))
        return found

    def get(self, name: str) -> bytes | None:
        """PNG bytes of a picture that was named, None for any other.

        Parameters
        ----------
        name : str
            As messages have it, `pictures/....png`.
        """
        return self._read(name) if name in self._names else None

    def _read(self, name: str) -> bytes | None:
        assert self._folder is not None
        path = self._folder / name
        try:
            return path.read_bytes() if path.stat().st_size <= _MOST_BYTES else None
        except OSError:  # a full disk has left it out
            return None
