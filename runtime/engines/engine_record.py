"""What is written beside every engine: its fingerprint, its hash, and how it came out.

    unet-0123456789abcdef.plan    the engine
    unet-0123456789abcdef.json    the record

Without its record an engine is never tried.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..errors import BundleError
from .fingerprint import Fingerprint

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One engine, described."""

    stage: str
    """Name of the graph: that of its file, without the ending."""
    fingerprint: Fingerprint
    sha256: str
    """Of the engine's bytes."""
    size_bytes: int
    weights_bytes: int = 0
    """Device memory that its weights take."""
    activation_bytes: int = 0
    """Device memory that one run of it takes."""
    layers: Mapping[str, int] = field(default_factory=dict[str, int])
    """What the builder made of the graph, by kind; `layers.py` says which kinds."""
    latency_ms: float | None = None
    """Median of one run, where it was measured: on the GPU that it was built on."""
    builds: int = 1
    """How many times it was built; the fastest was kept."""

    @property
    def name(self) -> str:
        """Of its files, without the ending."""
        return f"{self.stage}-{self.fingerprint.key}"

    def to_json(self) -> str:
        """The record's file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record.

        Raises
        ------
        BundleError
            No record, one of a newer version, or one whose fingerprint is not the one that its name
            stands for.
        """
        try:
            values = json.loads(path.read_text())
            if values.pop("schema") != SCHEMA:
                raise BundleError(f"{path} was written by another version of scanside")
            made = Fingerprint.from_dict(values.pop("fingerprint"))
            record = replace(cls(fingerprint=made, **values), size_bytes=int(values["size_bytes"]))
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise BundleError(f"{path} is no record of an engine ({exc!r})") from exc
        if record.name != path.stem:
            raise BundleError(f"{path} was changed: its contents belong to {record.name}.json")
        return record
