"""The bundles among which export chooses: every precision with every quantization.

Graphs do not depend on the language model's type, nor that on theirs, so each is compiled once and
they are put together by hard links.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runtime.errors import CheckpointError
from ..runtime.user_cache import sha256_of
from .bundle_writer import export_bundle, progress
from .compile_graph import Precision
from .golden import encode_golden, golden_volume
from .parity import ParityError
from .stages import StageReports, projector_sha256, write_language
from .torch_chain import TorchChain

LANGUAGE = "language.gguf"


@dataclass(slots=True)
class Candidates:
    """Bundles by precision and quantization, and what could not be compiled."""

    bundles: dict[tuple[str, str], Path] = field(default_factory=dict[tuple[str, str], Path])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    """The reason for each precision or quantization that the checkpoint cannot be compiled to."""


def write_candidates(
    checkpoint: Path,
    folder: Path,
    precisions: Sequence[Precision],
    quantizations: Sequence[str],
    name: str,
) -> Candidates:
    """Compile a checkpoint to all combinations.

    Parameters
    ----------
    checkpoint : Path
        A directory.
    folder : Path
        Where the bundles are written.
    precisions, quantizations : sequence of str
        As `export_bundle` takes them.
    name : str
        Of every bundle.

    Raises
    ------
    CheckpointError, ParityError
        Nothing could be compiled; the last reason.
    """
    found, languages = Candidates(), dict[str, StageReports]()
    failed: Exception | None = None
    chain = TorchChain.open(checkpoint)
    for quantize in quantizations:
        try:
            languages[quantize] = _write_language(chain, folder / f"language-{quantize}", quantize)
        except (CheckpointError, ParityError) as exc:
            found.refused[quantize], failed = str(exc), exc
    for precision in precisions if languages else ():
        plain = folder / precision
        first = next(iter(languages))
        try:
            export_bundle(checkpoint, plain, precision=precision, quantize=first, name=name)
        except ParityError as exc:
            found.refused[precision], failed = str(exc), exc
            continue
        for quantize, reports in languages.items():
            bundle = plain
            if quantize != first:
                bundle = folder / f"{precision}-{quantize}"
                _put_together(plain, folder / f"language-{quantize}", reports, bundle)
            found.bundles[precision, quantize] = bundle
    if not found.bundles and failed is not None:
        raise failed
    return found


def _write_language(chain: TorchChain, folder: Path, quantize: str) -> StageReports:
    """language.gguf alone, compared with PyTorch."""
    progress(f"language model ({quantize})")
    folder.mkdir()
    reports = StageReports()
    golden = encode_golden(chain, golden_volume(chain.checkpoint, folder / "golden.nii.gz"))
    reports.language["projector_sha256"] = projector_sha256(chain)
    write_language(chain, folder, golden["prefix"], quantize, reports)
    return reports


def _put_together(graphs: Path, language: Path, reports: StageReports, out: Path) -> None:
    """A bundle of the graphs of one and the language model of another."""
    shutil.copytree(graphs, out, copy_function=os.link)
    file = out / LANGUAGE
    file.unlink()
    os.link(language / LANGUAGE, file)
    manifest = read_json(graphs)
    manifest["language"] |= reports.language
    manifest["parity"]["language"] = reports.parity["language"].as_dict()
    manifest["files"][LANGUAGE] = {
        "sha256": sha256_of(file),
        "bytes": file.stat().st_size,
        "precision": reports.precision[LANGUAGE],
        "producer": reports.producer[LANGUAGE],
    }
    write_json(out, manifest)


def read_json(bundle: Path) -> dict[str, Any]:
    """A bundle's manifest."""
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def write_json(bundle: Path, manifest: dict[str, Any]) -> None:
    """A bundle's manifest anew, without touching another bundle that shares the old file."""
    path = bundle / "manifest.json"
    path.unlink()
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
