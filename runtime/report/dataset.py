"""The files of a BIDS dataset: what they are called, and the writing of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib

from ..errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Labels of the dataset: letters and digits, none of which names a person."""

    subject: str = "01"
    session: str | None = None
    task: str = "decoding"
    run: int = 1

    def __post_init__(self) -> None:
        for name, text in (
            ("subject", self.subject),
            ("session", self.session),
            ("task", self.task),
        ):
            if text is not None and not re.fullmatch("[A-Za-z0-9]+", text):
                raise InputError(
                    f"'{name}' must be letters and digits, as BIDS wants; got {text!r}"
                )
        if self.run < 1:
            raise InputError(f"'run' must be 1 or more; got {self.run}")

    @property
    def folder(self) -> Path:
        """Of the subject, or of its session."""
        inner = f"ses-{self.session}" if self.session else ""
        return Path(f"sub-{self.subject}") / inner

    @property
    def stem(self) -> str:
        """How the names of all files begin."""
        session = f"_ses-{self.session}" if self.session else ""
        return f"sub-{self.subject}{session}_task-{self.task}_run-{self.run}"


@dataclass(slots=True)
class DatasetWriter:
    """Writes files of a dataset, and remembers them."""

    root: Path
    names: Names
    files: list[Path] = field(default_factory=list[Path])

    def path(self, name: str, folder: str = "func") -> Path:
        """A file of the run, in its folder, which is made."""
        path = self.root / self.names.folder / folder / f"{self.names.stem}_{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return self.note(path)

    def note(self, path: Path) -> Path:
        """Remember a file."""
        self.files.append(path)
        return path

    def text(self, path: Path, text: str) -> None:
        """Write a text."""
        self.note(path).write_text(text, encoding="utf-8")

    def image(self, name: str, image: Any, told: Mapping[str, Any]) -> None:
        """Write an image and its sidecar."""
        nib.save(image, self.path(f"{name}.nii.gz"))
        self.path(f"{name}.json").write_text(as_json(told), encoding="utf-8")


def as_json(found: Mapping[str, Any]) -> str:
    """A sidecar's text."""
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
