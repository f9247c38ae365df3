"""The folder of a run: journal, answers, pictures, summary.

    journal.jsonl     what became of every volume and answer, written ahead
    answers.jsonl     every answer, one JSON object a line
    pictures/         previews and images
    betas/            each answer's beta as the decoder read it, and where in the brain it is
    summary.json      once the run is over
    normalisation-*   what the next run of the subject may begin with

When the disk is full nothing more is written here, that is told once, and the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..png import write_png
from .journal import Journal, Past

JOURNAL, ANSWERS, SUMMARY, PICTURES = "journal.jsonl", "answers.jsonl", "summary.json", "pictures"
BETAS, GRID = "betas", "grid.npz"


def beta_file(attempt: int, trial: int, revision: int) -> str:
    """Name of the file of an answer's beta: (2, E) float32, its values and their variance."""
    return f"attempt-{attempt}-trial-{trial:04d}-revision-{revision}.npy"


class RunFolder:
    """Where a run is written. Nothing is changed before `begin`.

    Parameters
    ----------
    path : Path
        Not there, empty, or the folder of the same run, which then is resumed.

    Raises
    ------
    InputError
        The folder holds a run that is over, or anything else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        """Why nothing more is written here, in a sentence; None while it is."""
        self._made: Path | None = None
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; name a folder for the run")
        if (path / SUMMARY).exists():
            raise InputError(f"{path} holds a run that is over; name another folder")
        held = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
        self.resumes = JOURNAL in held
        """Whether the folder holds a run that was broken off."""
        begun = set(held) <= {PICTURES, BETAS} and not any(
            any((path / name).iterdir()) for name in held
        )
        if held and not self.resumes and not begun:
            raise InputError(
                f"{path} holds {held[0]!r} and no journal of a run; name a new or empty folder"
            )

    def begin(self, header: Mapping[str, Any]) -> tuple[Journal, Past | None]:
        """Make the folder and begin its journal, or take it up again.

        Raises
        ------
        InputError
            It cannot be written, or its journal is that of a run with another set-up.
        """
        if self.resumes:
            journal, past = Journal.resume(self.path / JOURNAL, header)
            if any(record["kind"] == "end" for record in past.records):
                journal.close()
                raise InputError(f"{self.path} holds a run that is over; name another folder")
            return journal, past
        missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
        self._made = missing[-1] if missing else None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (PICTURES, BETAS):
                (self.path / name).mkdir(exist_ok=True)
        except OSError as exc:
            raise InputError(f"{self.path} cannot be written: {exc.strerror}") from exc
        return Journal.create(self.path / JOURNAL, header), None

    def undo(self) -> None:
        """Leave everything as it was before `begin`; for a run that was refused at once."""
        if self.resumes:
            return
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)
            return
        for name in (JOURNAL, ANSWERS):
            (self.path / name).unlink(missing_ok=True)
        for name in (PICTURES, BETAS):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def answers(self) -> list[dict[str, Any]]:
        """The answers that are written, after an unfinished last line is cut off."""
        path = self.path / ANSWERS
        try:
            whole = path.read_bytes()
        except OSError:
            return []
        lines = whole.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(path, len(whole) - len(lines.pop()))
        return [json.loads(line) for line in lines]

    def picture(
        self, name: str, pixels: NDArray[np.uint8], provenance: Mapping[str, object]
    ) -> str | None:
        """Write a picture, whole or not at all; its path within the folder, None if it cannot be.

        Parameters
        ----------
        name : str
            Of the file, without its suffix.
        pixels : (H, W, 3) uint8
        provenance : mapping
            What it was made from.
        """
        if self.trouble:
            return None
        path = self.path / PICTURES / f"{name}.png"
        arriving = path.with_name(f".{path.name}")
        try:
            write_png(arriving, pixels, provenance)
            os.replace(arriving, path)
        except OSError as exc:
            self.trouble = f"{self.path} takes nothing more: {exc.strerror}"
            with contextlib.suppress(OSError):
                arriving.unlink(missing_ok=True)
            return None
        return f"{PICTURES}/{path.name}"

    def beta(
        self,
        key: tuple[int, int, int],
        values: NDArray[np.float32],
        variance: NDArray[np.float32],
    ) -> None:
        """Write the beta of an answer, whole or not at all, unless it is there.

        Parameters
        ----------
        key : (3,) int
            Attempt, trial and revision.
        values, variance : (E,) float32
            As `Closed` holds them.
        """
        path = self.path / BETAS / beta_file(*key)
        if not path.exists():
            both = np.stack([values, variance]).astype(np.float32, copy=False)
            self._array(path, lambda file: np.save(file, both, allow_pickle=False))

    def grid(self, shape: tuple[int, int, int], voxels: NDArray[np.integer[Any]]) -> None:
        """Write where the elements of the betas are, unless it is there.

        Parameters
        ----------
        shape : (3,) int
            Of the model grid.
        voxels : (E, 3) int
            Of each element.
        """
        path = self.path / BETAS / GRID
        if not path.exists():
            size, where = np.array(shape, np.int32), voxels.astype(np.int16)
            self._array(path, lambda file: np.savez_compressed(file, shape=size, voxels=where))

    def _array(self, path: Path, save: Callable[[Any], None]) -> None:
        if self.trouble:
            return
        arriving = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(exist_ok=True)  # a run of an earlier version has none
            with arriving.open("wb") as file:
                save(file)
            os.replace(arriving, path)
        except OSError as exc:
            self.trouble = f"{self.path} takes nothing more: {exc.strerror}"
            with contextlib.suppress(OSError):
                arriving.unlink(missing_ok=True)

    def leave(self, save: Callable[[Path], None]) -> None:
        """Let something be saved here for the next run."""
        try:
            save(self.path)
        except OSError as exc:
            self.trouble = f"{self.path} takes nothing more: {exc.strerror}"

    def finish(self, summary: Mapping[str, Any]) -> bool:
        """Write the summary, whole or not at all; False if it cannot be."""
        arriving = self.path / f".{SUMMARY}"
        try:
            arriving.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
            os.replace(arriving, self.path / SUMMARY)
        except OSError as exc:
            self.trouble = self.trouble or f"{self.path} takes nothing more: {exc.strerror}"
            with contextlib.suppress(OSError):
                arriving.unlink(missing_ok=True)
            return False
        return True
