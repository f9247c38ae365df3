"""What several test files share: one random checkpoint, and the bundle exported from it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
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
    return _exported(tiny_checkpoint, "tiny", tmp_path_factory, pytestconfig)


@pytest.fixture(scope="session")
def three_encoder_bundle(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Path:
    """`tiny_bundle` with two more encoders, which localize; kept as that is. Read only."""
    from scanside.export.random_checkpoint import write_random_checkpoint

    checkpoint = tmp_path_factory.mktemp("checkpoint") / "three"
    write_random_checkpoint("tiny-three", checkpoint)
    return _exported(checkpoint, "three", tmp_path_factory, pytestconfig)


@pytest.fixture(scope="session")
def narrow_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the full-size wiring of the picture stage, at small width."""
    from scanside.export.random_checkpoint import write_random_checkpoint

    return write_random_checkpoint("narrow", tmp_path_factory.mktemp("checkpoint") / "narrow")


@pytest.fixture(scope="session")
def narrow_bundle(
    narrow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Path:
    """The bundle of `narrow_checkpoint`, kept as `tiny_bundle` is. Read only."""
    return _exported(narrow_checkpoint, "narrow", tmp_path_factory, pytestconfig)


def _exported(
    checkpoint: Path, name: str, tmp_path_factory: pytest.TempPathFactory, config: pytest.Config
) -> Path:
    from scanside.export.bundle_writer import export_bundle

    assert config.cache is not None
    kept = config.cache.mkdir(f"{name}-bundle") / _exporter_identity()
    if not kept.exists():
        made = tmp_path_factory.mktemp("bundle") / name
        export_bundle(checkpoint, made, quantize="f32", name=name)
        arriving = kept.with_name(f"{kept.name}.{os.getpid()}")
        shutil.copytree(made, arriving)
        with contextlib.suppress(OSError):  # a run beside this one was faster
            arriving.rename(kept)
        shutil.rmtree(arriving, ignore_errors=True)
    return kept


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes 4-D runs of random voxels with an oblique affine, (7, 6, 5, volumes) int16."""

    def make(
        volumes: int = 12, tr_s: float = 1.6, dtype: str = "i2", name: str = "run.nii"
    ) -> Path:
        rng = np.random.default_rng(volumes)
        data = rng.integers(1, 2000, (7, 6, 5, volumes)).astype(dtype)
        tilt = np.deg2rad(10)
        turn = np.array(
            [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
        )
        affine = np.eye(4)
        affine[:3, :3] = turn * [-2.0, 2.5, 3.0]
        affine[:3, 3] = 10.0, -20.0, 30.0
        image = nib.Nifti1Image(data, affine)
        image.header.set_zooms((2.0, 2.5, 3.0, tr_s))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return make


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
