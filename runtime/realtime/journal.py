"""What became of every volume and every trial, written down before it is acted on.

One JSON object a line, appended, each with a checksum over itself and the line before it: a torn
last line shows, and so does a line that was changed, lost or moved. A line is handed to the
operating system before `append` returns; from then on it survives `kill -9` at any moment. It
survives a power cut once it is synchronised to the disk, which a thread does about once a second
beside the run: a power cut loses at most the last seconds of a run, a crash of the program nothing.
When the disk is full writing ends, that is told once, and the run goes on without a journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

SCHEMA = 1
_MARK = b',"crc":"'
_TAIL = len(_MARK) + 8 + len(b'"}\n')
"""Bytes of a line from its checksum on."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a journal holds when it is taken up again."""

    header: dict[str, Any]
    """What the run was set up with."""
    records: tuple[dict[str, Any], ...]
    """All that followed, oldest first."""
    torn_bytes: int
    """Bytes of a last line that was not finished, now cut off."""

    def volumes(self) -> dict[int, dict[str, Any]]:
        """The newest record of each volume, by its number, of the newest attempt at the run."""
        newest: dict[int, dict[str, Any]] = {}
        for record in self.records:
            if record["kind"] == "restart":
                newest.clear()
            elif record["kind"] == "volume":
                newest[record["number"]] = record
        return newest

    def trials(self) -> dict[tuple[int, int], dict[str, Any]]:
        """The newest record of each answer, by trial and revision, of the newest attempt."""
        newest: dict[tuple[int, int], dict[str, Any]] = {}
        for record in self.records:
            if record["kind"] == "restart":
                newest.clear()
            elif record["kind"] == "trial":
                newest[record["trial"], record["revision"]] = record
        return newest


def read_journal(path: Path) -> Past:
    """Read a journal without taking it up: of a run that is over, broken off, or still going on.

    Raises
    ------
    InputError
        No journal, or one that is damaged elsewhere than at its end.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        records, _, _, torn_bytes = _read(file, path)
    finally:
        os.close(file)
    if not records:
        raise InputError(f"{path} was broken off within its first line; it tells of nothing")
    return Past(records[0]["header"], tuple(records[1:]), torn_bytes)


class Journal:
    """A journal that is being written. Made by `create` or `resume`, never directly.

    Attributes
    ----------
    trouble : str or None
        Why writing has ended, in a sentence for the operator; None while it goes on.
    """

    def __init__(self, file: int, path: Path, chain: int, size: int, sync_s: float) -> None:
        self.trouble: str | None = None
        self._file = file
        self._path = path
        self._chain = chain
        self._size = size
        self._order = threading.Lock()
        self._unsynchronised = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._synchronise, args=(sync_s,), name="journal", daemon=True
        )
        self._thread.start()

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], header: Mapping[str, Any], *, sync_s: float = 1.0
    ) -> Journal:
        """Begin a journal.

        Parameters
        ----------
        path : path
            Must not exist yet.
        header : mapping
            What the run is set up with; `resume` compares it.
        sync_s : float
            Seconds between two synchronisations with the disk.

        Raises
        ------
        InputError
            There is one already, or it cannot be written.
        """
        path = Path(path)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError as exc:
            raise InputError(f"{path} is there already: resume that run, or name another") from exc
        except OSError as exc:
            raise InputError(f"{path} cannot be written: {exc.strerror}") from exc
        _lock(file, path)
        journal = cls(file, path, chain=0, size=0, sync_s=sync_s)
        journal.append("run", schema=SCHEMA, header=dict(header))
        if journal.trouble:
            journal.close()
            raise InputError(journal.trouble)
        return journal

    @classmethod
    def resume(
        cls, path: str | os.PathLike[str], header: Mapping[str, Any], *, sync_s: float = 1.0
    ) -> tuple[Journal, Past]:
        """Take up a journal that a run left behind, and cut off an unfinished last line.

        A journal that was broken off within its first line is begun anew.

        Raises
        ------
        InputError
            No journal, one that is damaged elsewhere than at its end, one of a run that was set up
            otherwise, or one that another process is writing.
        """
        path = Path(path)
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND)
        except OSError as exc:
            raise InputError(f"{path} cannot be taken up again: {exc.strerror}") from exc
        try:
            _lock(file, path)
            records, chain, size, torn_bytes = _read(file, path)
            if records:
                _compare(records[0]["header"], json.loads(json.dumps(dict(header))), path)
            os.ftruncate(file, size)
        except InputError:
            os.close(file)
            raise
        journal = cls(file, path, chain, size, sync_s)
        if not records:
            journal.append("run", schema=SCHEMA, header=dict(header))
        return journal, Past(dict(header), tuple(records[1:]), torn_bytes)

    def volume(self, number: int, state: str, **details: Any) -> bool:
        """Write down the state of a volume, by its number from 0; False if nothing is written."""
        return self.append("volume", number=number, state=state, **details)

    def trial(self, trial: int, revision: int, state: str, **details: Any) -> bool:
        """Write down the state of a trial's answer; False if nothing is written any more."""
        return self.append("trial", trial=trial, revision=revision, state=state, **details)

    def append(self, kind: str, **values: Any) -> bool:
        """Write one record; any thread may.

        Parameters
        ----------
        kind : str
            What the record is about; `restart` begins a new attempt at the run.
        **values
            Whatever JSON can say; numbers come back exactly as they were, NaN is refused.

        Returns
        -------
        written : bool
            False once the journal has had to end.
        """
        with self._order:
            return self._append({"kind": kind, **values})

    def _append(self, record: Mapping[str, Any]) -> bool:
        if self.trouble:
            return False
        body = json.dumps(record, allow_nan=False, separators=(",", ":")).encode()[:-1]
        chain = zlib.crc32(body, self._chain)
        line = body + _MARK + b'%08x"}\n' % chain
        try:
            left = memoryview(line)
            while left:  # a full disk takes a piece first, and says so only when asked again
                left = left[os.write(self._file, left) :]
        except OSError as exc:
            self._end(exc)
            return False
        self._chain = chain
        self._size += len(line)
        self._unsynchronised.set()
        return True

    def close(self) -> None:
        """Synchronise and close; may be called twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._unsynchronised.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            os.fdatasync(self._file)
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, exc: OSError) -> None:
        self.trouble = (
            f"the journal {self._path} ends here: {exc.strerror}; the run goes on, but cannot be "
            "resumed beyond this point"
        )
        with contextlib.suppress(OSError):  # what is there stays readable
            os.ftruncate(self._file, self._size)

    def _synchronise(self, every_s: float) -> None:
        while not self._closed.is_set():
            self._unsynchronised.wait()
            self._closed.wait(every_s)
            self._unsynchronised.clear()
            try:
                os.fdatasync(self._file)
            except OSError as exc:
                if not self.trouble:
                    self._end(exc)


def _lock(file: int, path: Path) -> None:
    """The system takes the lock away when the process ends, however it ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        raise InputError(f"{path} is being written by another run; end that one first") from exc


def _read(file: int, path: Path) -> tuple[list[dict[str, Any]], int, int, int]:
    """Records, checksum of the last, bytes that they fill, and bytes that follow them."""
    with os.fdopen(os.dup(file), "rb") as stream:
        stream.seek(0)
        whole = stream.read()
    records: list[dict[str, Any]] = []
    chain, size = 0, 0
    lines = whole.splitlines(keepends=True)
    for index, line in enumerate(lines):
        following = zlib.crc32(line[:-_TAIL], chain)
        if line[-_TAIL:] != _MARK + b'%08x"}\n' % following:
            if any(later[-_TAIL:].startswith(_MARK) for later in lines[index:]):
                raise InputError(
                    f"{path} is damaged in line {index + 1} of {len(lines)}; it cannot be resumed, "
                    "so begin the run anew with another folder"
                )
            break
        records.append(json.loads(line))
        chain, size = following, size + len(line)
    if records and (records[0]["kind"] != "run" or records[0]["schema"] != SCHEMA):
        raise InputError(f"{path} is no journal of schema {SCHEMA}, the one that is read here")
    return records, chain, size, len(whole) - size


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            raise InputError(
                f"{path} is of a run with {key} {found.get(key)!r}, not {wanted.get(key)!r}; "
                "resume with the same arguments, or begin anew with another folder"
            )
