"""What several test files share: one random checkpoint, and the bundle exported from it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All parts of a decoder with random weights at toy size; tests that change it copy it."""
    from scanside.export.random_checkpoint import write_random_checkpoint

    return write_random_checkpoint("tiny", tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Path:
    """The bundle of `tiny_checkpoint`, its language model in float32. Read only.

    Tracing takes half a minute, so the bundle stays in pytest's cache for as long as neither the
    exporter nor a library under it changes; `pytest --cache-clear` forgets it.
    """
    from scanside.export.bundle_writer import export_bundle

    assert pytestconfig.cache is not None
    kept = pytestconfig.cache.mkdir("tiny-bundle") / _exporter_identity()
    if not kept.exists():
        made = tmp_path_factory.mktemp("bundle") / "tiny"
        export_bundle(tiny_checkpoint, made, quantize="f32", name="tiny")
        arriving = kept.with_name(f"{kept.name}.{os.getpid()}")
        shutil.copytree(made, arriving)
        with contextlib.suppress(OSError):  # a run beside this one was faster
            arriving.rename(kept)
        shutil.rmtree(arriving, ignore_errors=True)
    return kept


def _exporter_identity() -> str:
    import scanside.export
    import scanside.kernels

    digest = hashlib.sha256()
    folders = [*scanside.export.__path__, *scanside.kernels.__path__]
    sources = [path for folder in folders for path in Path(folder).glob("*.py")]
    for path in sorted(sources):
        digest.update(path.read_bytes())
    for package in ("torch", "onnx", "onnxscript", "diffusers", "transformers", "gguf", "triton"):
        digest.update(version(package).encode())
    return digest.hexdigest()[:16]
