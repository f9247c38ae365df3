"""Answers as files, for programs that poll a folder.

    latest.json         the state of the run (see `latest`), replaced as a whole at every message
    0000000412.json     every message, by its number
    pictures/           pictures, there before the message that names them

A file is there whole or not at all: it is written beside its place and then renamed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import InputError
from .announced import Announced
from .latest import Latest

LATEST = "latest.json"


class FilesOutlet:
    """Writes into a folder.

    Parameters
    ----------
    folder : Path
        New or empty, unless the run is resumed.
    pictures : Path, optional
        Folder of the run, whose pictures are copied.
    resumes : bool
        Whether an earlier life of the run has written there.

    Raises
    ------
    InputError
        A folder that holds something, or cannot be written.
    """

    def __init__(
        self, folder: Path, pictures: Path | None = None, *, resumes: bool = False
    ) -> None:
        check_folder(folder, resumes=resumes)
        self._folder = folder
        self._latest = Latest()
        self._announced = Announced(pictures)
        try:
            (folder / "pictures").mkdir(parents=True, exist_ok=True)
            self._put(LATEST, self._latest.as_json().encode())
        except OSError as exc:
            raise InputError(f"'sink' files:{folder} cannot be written: {exc.strerror}") from exc

    def send(self, message: str) -> None:
        """Write one message, then the state."""
        content = json.loads(message)
        for name, picture in self._announced.take(content):
            self._put(name, picture)
        self._latest.take(content)
        self._put(f"{content['seq']:010d}.json", message.encode())
        self._put(LATEST, self._latest.as_json().encode())

    def close(self) -> None:
        """Nothing to give up: what is written stays."""

    def _put(self, name: str, content: bytes) -> None:
        path = self._folder / name
        arriving = path.with_name(f".{path.name}.arriving")
        arriving.write_bytes(content)
        os.replace(arriving, path)


def check_folder(folder: Path, *, resumes: bool) -> None:
    """Refuse a folder that cannot be used, without touching it; an InputError says why."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'sink' files:{folder} is a file; name a folder")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise InputError(f"'sink' files:{folder}: {there} cannot be written")
    if folder.exists() and not resumes and (held := sorted(p.name for p in folder.iterdir())):
        raise InputError(
            f"'sink' files:{folder} holds {held[0]!r}, which a poller would take for this run's; "
            "name a new or empty folder"
        )
