"""Checkpoint -> bundle: compile every stage, hold it against PyTorch, write the manifest.

    scanside export random:tiny BUNDLE

Everything is written into a hidden sibling of the target and renamed at the end, so that neither a
failed comparison nor a full disk leaves half a bundle.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import InputError, ScansideError
from .checkpoint import open_checkpoint
from .compile_graph import PRECISIONS, Precision
from .concept_encoder import TorchConcepts, write_concept_encoder
from .engines import check_targets, write_engines
from .fusing import check_fusing, fuse_graphs
from .kernels import write_kernels
from .localizer_parts import Localization, read_localization
from .localizer_stages import write_localizers
from .manifest_writer import write_manifest
from .picture_stages import write_diffusion
from .quantize import check_quantization
from .settings import DiffusionSettings
from .stages import StageReports, write_encoder, write_golden, write_language
from .torch_chain import TorchChain

REFERENCE = Path(__file__).parent / "reference" / "checkpoint"


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    *,
    targets: Sequence[str] = ("cpu",),
    precision: Precision = "fp32",
    quantize: str = "f16",
    fuse: str = "none",
    diffusion: DiffusionSettings | None = None,
    name: str | None = None,
) -> Path:
    """Compile a checkpoint into a bundle.

    Parameters
    ----------
    checkpoint : str or Path
        A directory, "reference", or random weights: "random:tiny", "random:paper",
        "random:paper-1b".
    out : str or Path
        The bundle's folder; must not exist or be empty.
    targets : sequence of {"cpu", "cuda", "rtx"}
        What to build for: cpu and cuda run the graphs themselves, rtx adds an engine of each.
    precision : {"fp32", "fp16", "int8"}
        Arithmetic of the encoder, the U-Net and the decoders. With fp16 a node stays float32 where
        the numbers of real inputs forbid half precision; the manifest lists which, and why. Weights
        that are exact in half precision are stored so in any case. With int8 products with weights
        are taken in 8 bits, on a CPU.
    quantize : str
        Type of the language model's matrices: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m.
    fuse : {"none", "attention", "cuda"}
        Parts of the graphs as one operator each of ONNX Runtime, which are faster on a GPU:
        attention, which a CPU runs too, but not together with rtx; or all that gained there, for
        the target cuda alone.
    diffusion : DiffusionSettings, optional
        Defaults of the picture stage; by default the checkpoint's `diffusion/sampling.json`.
    name : str, optional
        The bundle's name; by default the checkpoint's.

    Returns
    -------
    out : Path

    Raises
    ------
    InputError
        Wrong argument, or `out` is not empty.
    CheckpointError
        The checkpoint is incomplete or does not fit together.
    ParityError
        A compiled stage is too far from PyTorch.
    ScansideError
        Writing failed, for example on a full disk.
    """
    check_targets(targets)
    check_fusing(fuse, targets, precision)
    _check_choice("precision", [precision], PRECISIONS)
    check_quantization(quantize)
    out = Path(out).absolute()
    check_free(out)
    label = str(checkpoint)
    with scratch_beside(out) as scratch:
        root = resolve(label, scratch)
        folder = scratch / "bundle"
        folder.mkdir()
        opened = open_checkpoint(root)
        localization = read_localization(opened)
        chain = TorchChain(opened, diffusion)
        settings = chain.settings
        reports = _write_stages(chain, folder, settings, quantize, precision, localization)
        # last: the CPU, on which answers are compared, does not run all of them
        reports.fused = fuse_graphs(folder, fuse, precision, progress)
        write_engines(folder, targets, reports, progress)
        bundle_name = name or (label if ":" in label or label == "reference" else root.name)
        write_manifest(folder, bundle_name, opened, settings, reports)
        put_in_place(folder, out)
    return out


def _write_stages(
    chain: TorchChain,
    folder: Path,
    settings: DiffusionSettings,
    quantize: str,
    precision: Precision,
    localization: Localization | None,
) -> StageReports:
    """One part of the checkpoint in memory at a time."""
    reports = StageReports()
    progress("encoder")
    hidden = localization is not None
    encoded = write_encoder(chain, folder, reports, precision, hidden=hidden)
    if localization:
        progress("localizer")
        write_localizers(chain, localization, folder, encoded, reports, precision)
    progress(f"language model ({quantize})")
    texts = write_language(chain, folder, encoded["prefix"], quantize, reports)
    progress("golden picture")
    write_golden(chain, folder, encoded, texts, settings, reports, precision)
    progress("diffusion")
    write_diffusion(chain, folder, encoded, settings, reports, precision)
    if localization:
        progress("concept encoder")
        write_concept_encoder(TorchConcepts(chain.checkpoint.root), folder, reports)
    progress("kernels")
    write_kernels(folder, reports)
    for stage, parity in reports.parity.items():
        progress(f"{stage} differs from PyTorch by {parity.relative:.1e} (relative)")
    return reports


def progress(text: str) -> None:
    """Say what is being done, on a terminal only."""
    if sys.stderr.isatty():
        print(f"export: {text}", file=sys.stderr, flush=True)


def _check_choice(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    for value in given:
        if value not in known:
            raise InputError(f"'{name}' must be of {', '.join(known)}; got {value!r}")


def check_free(out: Path) -> None:
    """InputError unless a bundle may be written there."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists and is not an empty folder; choose another name")


@contextmanager
def scratch_beside(out: Path) -> Generator[Path]:
    """A hidden sibling of `out`, on the same disk, removed at the end whatever happens.

    Raises
    ------
    ScansideError
        In place of the OSError with which writing failed, inside the block too.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as exc:
        raise ScansideError(
            f"could not write the bundle {out}: {exc.strerror or exc}; nothing was left behind"
        ) from exc


def put_in_place(folder: Path, out: Path) -> None:
    """Give a finished bundle its name, which `check_free` has found free or an empty folder's."""
    if out.exists():
        out.rmdir()
    folder.rename(out)


def resolve(label: str, scratch: Path) -> Path:
    """The checkpoint's directory; random weights are written into `scratch`."""
    if label == "reference":
        return REFERENCE
    if label.startswith("random:"):
        from .random_checkpoint import write_random_checkpoint

        return write_random_checkpoint(
            label.removeprefix("random:"), scratch / "checkpoint", progress=progress
        )
    return Path(label)
