"""What an engine was made from and for: the key of the engine cache, and the answer to "may I?".

An engine is a compiled graph that is bound to a library's version, to kinds of GPU, and often to
one model of GPU and its driver. A name says nothing of that, so an engine is found by the hash of
all of it, and never tried where it does not match.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..manifest import TensorSpec

BACKENDS = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
PORTABLE = "version-compatible"
"""Flag of engines that later versions of the same major run too, the lean runtime among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Everything that an engine depends on."""

    onnx: str
    """SHA-256 of the graph and of the files that hold its weights."""
    backend: str
    """rtx or tensorrt."""
    version: str
    """Of the library that made it, for example 1.7.1.116."""
    capabilities: tuple[str, ...]
    """Kinds of GPU that it runs on, for example sm_89."""
    gpu: str = ""
    """Name of the GPU that it was made on; empty if it was made for any GPU of those kinds."""
    driver: str = ""
    """Version of the driver that it was made with; empty if it was made without one."""
    profile: str = ""
    """Names, shapes and types of its inputs."""
    flags: tuple[str, ...] = ()
    """What the builder was told."""
    system: str = ""
    """Operating system and processor."""

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits that stand for all of it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `dataclasses.asdict`; TypeError for other keys or types."""
        read: dict[str, Any] = dict(values)
        for name in ("capabilities", "flags"):
            read[name] = tuple(read[name])
        found = cls(**read)
        for name, value in asdict(found).items():
            parts = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(part, str) for part in parts):
                raise TypeError(f"{name} must be text; got {value!r}")
        return found


class Validity(Enum):
    """Whether an engine may run here."""

    VALID = "valid"
    SUBOPTIMAL = "usable but not best"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The three-way answer, with the reason unless it is a plain yes."""

    validity: Validity
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether it may be loaded at all."""
        return self.validity is not Validity.INVALID


def judge(made: Fingerprint, here: Fingerprint) -> Verdict:
    """Whether an engine that was made as `made` says may run `here`.

    Parameters
    ----------
    made : Fingerprint
        Of the engine.
    here : Fingerprint
        What an engine would have that was built now on this machine, from this graph; its
        `capabilities` hold the one kind of GPU that is here.
    """
    name = BACKENDS.get(here.backend, here.backend)
    capability = here.capabilities[0]
    if made.backend != here.backend:
        return _invalid(f"it was made by {BACKENDS.get(made.backend, made.backend)}, not {name}")
    if made.onnx != here.onnx:
        return _invalid(f"it was made from another graph ({made.onnx[:12]}…)")
    if made.profile != here.profile:
        return _invalid(f"it was made for the inputs {made.profile}, the graph has {here.profile}")
    portable = PORTABLE in made.flags
    if made.version != here.version and not (portable and _later(made.version, here.version)):
        return _invalid(f"it was made by {name} {made.version}, and {here.version} is here")
    if made.system != here.system:
        return _invalid(f"it was made for {made.system}, and this is {here.system}")
    if capability not in made.capabilities:
        kinds = ", ".join(made.capabilities)
        return _invalid(f"it was made for {kinds}, and {here.gpu or 'this GPU'} is {capability}")
    if set(made.flags) - {PORTABLE} != set(here.flags) - {PORTABLE}:
        return _invalid(f"it was made with {_listed(made.flags)}, not {_listed(here.flags)}")
    if PORTABLE in here.flags and not portable:
        return _invalid("it was not made to be version-compatible, which the lean runtime needs")
    if made.gpu and made.gpu != here.gpu:
        return _invalid(f"it was made on a {made.gpu}, and this is a {here.gpu}")
    if made.driver and made.driver != here.driver:
        return Verdict(
            Validity.SUBOPTIMAL, f"it was made with driver {made.driver}, and {here.driver} is here"
        )
    if made.version != here.version:
        return Verdict(
            Validity.SUBOPTIMAL, f"it was made by {name} {made.version}, and {here.version} is here"
        )
    if portable and PORTABLE not in here.flags:
        return Verdict(
            Validity.SUBOPTIMAL, "it was made to be version-compatible, which costs time"
        )
    return Verdict(Validity.VALID)


def _later(made: str, here: str) -> bool:
    """Whether `here` is a later version of the same major."""
    first, second = (tuple(map(int, re.findall(r"\d+", text))) for text in (made, here))
    return first[:1] == second[:1] and first <= second


def _invalid(reason: str) -> Verdict:
    return Verdict(Validity.INVALID, reason)


def _listed(flags: tuple[str, ...]) -> str:
    return ", ".join(flags) or "no flags"


def profile_of(inputs: Mapping[str, TensorSpec]) -> str:
    """Names, shapes and types of a graph's inputs in one line."""
    return " ".join(
        f"{name}:{spec.dtype}[{','.join(map(str, spec.shape))}]"
        for name, spec in sorted(inputs.items())
    )


def graph_sha256(path: Path, hashes: Mapping[Path, str]) -> str:
    """One hash for a graph and the files that hold its weights.

    Parameters
    ----------
    path : Path
        The .onnx file.
    hashes : mapping
        SHA-256 of it, and of every file with weights of it.
    """
    named = sorted((file.name, digest) for file, digest in hashes.items() if file != path)
    return hashlib.sha256(json.dumps([hashes[path], named]).encode()).hexdigest()


def this_system() -> str:
    """For example linux-x86_64."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"
