"""A folder of compiled kernels: found, held against the launch contract and its hashes, and read.

    kernels.json      the launch contract and the hash of every binary
    sm_80.tar.xz ...  machine code of all variants for one architecture
    ptx.tar.xz        PTX of all variants, for architectures that came later

`ahead_of_time.py` writes such a folder; every bundle holds one.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .variants import ARGUMENTS, BLOCK, CONTRACT, SCRATCH, Variant

CONTRACT_FILE = "kernels.json"


class NoCodeError(ValueError):
    """There are kernels, but none for this device."""


def contract() -> dict[str, Any]:
    """What this version of scanside hands to a kernel, as it stands in kernels.json."""
    return {
        "contract": CONTRACT,
        "block": BLOCK,
        "arguments": [{"name": n, "type": t, "count": c} for n, t, c in ARGUMENTS],
        "scratch_pointers": list(SCRATCH),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The code of one variant for one architecture, and how it is launched."""

    target: str
    """sm_90 and the like, or ptx."""
    code: bytes
    symbol: str
    warps: int
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class CompiledKernels:
    """A folder whose kernels take what this version hands them."""

    folder: Path
    document: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> CompiledKernels:
        """Read kernels.json.

        Raises
        ------
        ValueError
            There is none, it is damaged, or it has another launch contract.
        """
        path = Path(folder) / CONTRACT_FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise ValueError(
                f"'kernels' must be a folder with {CONTRACT_FILE}, such as BUNDLE/kernels; "
                f"found none in {folder}"
            ) from exc
        except ValueError as exc:
            raise ValueError(f"{path} is not JSON ({exc}); export the bundle again") from exc
        _check_contract(path, document)
        return cls(Path(folder), document)

    @property
    def targets(self) -> tuple[str, ...]:
        """Architectures that there is machine code for, and ptx."""
        return tuple(self.document["images"])

    def target(self, major: int, minor: int) -> str:
        """The code for a device: of its own generation and not newer than it, or else PTX.

        Raises
        ------
        NoCodeError
            There is none that this device could run.
        """
        device = 10 * major + minor
        compiled = [int(t.removeprefix("sm_")) for t in self.targets if t.startswith("sm_")]
        fitting = [sm for sm in compiled if sm // 10 == major and sm <= device]
        if fitting:
            return f"sm_{max(fitting)}"
        if "ptx" in self.targets and device >= self.document["images"]["ptx"]["capability"]:
            return "ptx"
        raise NoCodeError(
            f"{self.folder} has code for {', '.join(self.targets)}, none of which runs on compute "
            f"capability {major}.{minor}; use impl='cpu'"
        )

    def image(self, variant: Variant, target: str) -> Image:
        """Unpack the code of a variant.

        Raises
        ------
        ValueError
            It is missing, damaged, or not the code that kernels.json was written for.
        """
        if variant.name not in self.document["variants"]:
            raise ValueError(
                f"{self.folder} has no kernel {variant.name}, from the stored type of 'volume' to "
                f"'dtype'; it has {', '.join(self.document['variants'])}"
            )
        entry, launch = self.document["images"][target], self.document["variants"][variant.name]
        path = self.folder / entry["file"]
        try:
            with tarfile.open(path, "r:xz") as archive:
                member = archive.extractfile(variant.name)
                code = member.read() if member else b""
        except (OSError, KeyError, EOFError, tarfile.TarError, lzma.LZMAError) as exc:
            raise ValueError(
                f"{path} holds no readable {variant.name} ({exc}); copy the bundle again"
            ) from exc
        if hashlib.sha256(code).hexdigest() != entry["sha256"][variant.name]:
            raise ValueError(
                f"{path}: {variant.name} is not the code that {CONTRACT_FILE} was written for; "
                "copy the bundle again"
            )
        return Image(
            target=target,
            code=code,
            symbol=launch["symbol"],
            warps=launch["warps"],
            shared_bytes=launch["shared_bytes"],
        )

    def check(self) -> int:
        """Unpack everything; gives the number of binaries that agree with their hashes."""
        variants = [Variant(v["volume"], v["tokens"]) for v in self.document["variants"].values()]
        images = [self.image(v, target) for target in self.targets for v in variants]
        return len(images)


def _check_contract(path: Path, document: Any) -> None:
    if not isinstance(document, dict) or not {"images", "variants"} <= document.keys():
        raise ValueError(f"{path} does not describe kernels; export the bundle again")
    for key, expected in contract().items():
        if document.get(key) != expected:
            raise ValueError(
                f"{path} was written for another launch contract: its {key} differ from what this "
                "scanside hands to a kernel; export the bundle again"
            )
    try:
        needy = _check_entries(document["variants"], document["images"])
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ValueError(
            f"{path} lacks a part of the launch contract ({exc}); export the bundle again"
        ) from exc
    if needy:
        raise ValueError(
            f"{path}: {', '.join(needy)} needs scratch memory, and this scanside launches with none"
        )


def _check_entries(variants: dict[str, Any], images: dict[str, Any]) -> list[str]:
    """Meet every entry that is read later; gives the variants that need scratch memory."""
    for name, launch in variants.items():
        if Variant(launch["volume"], launch["tokens"]).name != name:
            raise ValueError(f"{name} is not what it says it is")
        if not (launch["symbol"] and 0 < launch["warps"] <= 32 and launch["shared_bytes"] >= 0):
            raise ValueError(f"{name} cannot be launched")
    for target, image in images.items():
        if image["sha256"].keys() != variants.keys() or not image["file"]:
            raise ValueError(f"{target} does not hold the variants")
        if target == "ptx":
            int(image["capability"])
        elif not target.removeprefix("sm_").isdecimal():
            raise ValueError(f"{target} is no architecture")
    return [name for name, launch in variants.items() if any(launch["scratch_bytes"].values())]
