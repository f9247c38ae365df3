"""A bundle on disk: found, hashed, and only then read.

A bundle is a folder with `manifest.json` and the files it names. It is never written to.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .manifest import FileSpec, Manifest
from .manifest_reader import read_manifest
from .user_cache import HashMemory, sha256_of

REFERENCE = Path(__file__).parent / "reference" / "bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle whose files are all there and unchanged."""

    root: Path
    manifest: Manifest
    sha256: str
    """Identity: the hash of manifest.json."""

    @classmethod
    def open(cls, where: str | os.PathLike[str], *, always_hash: bool = False) -> Bundle:
        """Open a bundle.

        Parameters
        ----------
        where : path or "reference"
            The folder; "reference" is the bundle that comes with scanside.
        always_hash : bool
            Read every byte again, instead of trusting hashes remembered for unchanged files.

        Raises
        ------
        BundleError
            No bundle there, a newer schema, a missing file, or a file with a changed byte.
        """
        root = REFERENCE if str(where) == "reference" else Path(where)
        text = _manifest_bytes(root)
        try:
            document = json.loads(text)
        except ValueError as exc:
            raise BundleError(f"{root}/manifest.json is not JSON ({exc}); export it again") from exc
        bundle = cls(
            root=root,
            manifest=read_manifest(document),
            sha256=hashlib.sha256(text).hexdigest(),
        )
        bundle.check_files(always_hash=always_hash)
        return bundle

    def check_files(self, *, always_hash: bool = False) -> None:
        """Hold every file against the manifest; BundleError names the first that differs."""
        memory = HashMemory()
        for name, spec in self.manifest.files.items():
            path = self.path(name)
            _check_size(path, name, spec)
            found = sha256_of(path) if always_hash else memory.sha256(path)
            if found != spec.sha256:
                raise BundleError(
                    f"{path} was changed: its SHA-256 is {found[:12]}…, the manifest says "
                    f"{spec.sha256[:12]}…; copy the bundle again from its source"
                )
        memory.save()

    def path(self, name: str) -> Path:
        """Path of a file of the bundle.

        Raises
        ------
        BundleError
            The manifest does not list it, it is not there, or its name points outside the bundle.
        """
        parts = PurePosixPath(name)
        if name not in self.manifest.files or parts.is_absolute() or ".." in parts.parts:
            raise BundleError(
                f"{self.root}: the manifest does not list a file {name!r} of the bundle"
            )
        path = self.root / parts
        if not path.is_file():
            raise BundleError(f"{path} is missing; copy the bundle again from its source")
        return path

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """All arrays of a NumPy archive of the bundle; pickled objects are refused."""
        path = self.path(name)
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (ValueError, OSError, zipfile.BadZipFile) as exc:
            raise BundleError(f"{path} is not a plain NumPy archive ({exc})") from exc


def _manifest_bytes(root: Path) -> bytes:
    if root == REFERENCE and not root.is_dir():
        raise BundleError(
            "this installation comes without the reference bundle; name a bundle folder"
        )
    if not root.is_dir():
        raise BundleError(f"{root}: no such bundle; expected a folder with manifest.json")
    try:
        return (root / "manifest.json").read_bytes()
    except FileNotFoundError as exc:
        raise BundleError(f"{root} has no manifest.json, so it is not a bundle") from exc


def _check_size(path: Path, name: str, spec: FileSpec) -> None:
    found = path.stat().st_size
    if found != spec.size_bytes:
        raise BundleError(
            f"{path} was changed: it has {found} bytes, the manifest says {spec.size_bytes}; "
            "copy the bundle again from its source"
        )
