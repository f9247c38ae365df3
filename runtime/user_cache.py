"""The user's cache folder, and the memory of hashes that lives in it.

A bundle is hashed before it is parsed, but gigabytes need not be read again at every start: a hash
is remembered for as long as path, size, modification time and inode stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/scanside`, by default `~/.cache/scanside`; not created."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "scanside"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class HashMemory:
    """Remembered SHA-256 hashes of files.

    The memory is a convenience: where the cache folder cannot be read or written, files are hashed
    again and nothing else happens.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = (folder or cache_folder()) / "hashes.json"
        self._known = self._read()
        self._changed = False

    def sha256(self, path: Path) -> str:
        """The file's hash, computed only if it is not the file that was hashed before."""
        path = path.resolve()
        stat = path.stat()
        identity = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(str(path))
        if isinstance(known, list) and len(known) == 4 and known[:3] == identity:
            return str(known[3])
        digest = sha256_of(path)
        self._known[str(path)] = [*identity, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        """Write what was learnt, in one step, so that a parallel start never reads half a file."""
        if not self._changed:
            return
        scratch = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            present = {name: known for name, known in self._known.items() if Path(name).exists()}
            scratch.write_text(json.dumps(present))
            scratch.replace(self._file)
        except OSError:
            return

    def _read(self) -> dict[str, list[int | str]]:
        try:
            known = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
