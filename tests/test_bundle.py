"""Opening bundles: whole and unchanged ones only, hashed once."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanside.runtime import user_cache
from scanside.runtime.bundle import Bundle
from scanside.runtime.errors import BundleError
from scanside.runtime.user_cache import HashMemory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scanside"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_opens_and_its_identity_is_the_manifests_hash(bundle: Path):
    opened = Bundle.open(bundle)
    assert opened.sha256 == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert opened.manifest.encoder.outputs["clip"].shape == (1, 24)
    assert opened.manifest.language is not None
    assert opened.arrays("encoder.npz")["active"].shape == (12,)


def test_a_bundle_can_be_moved(bundle: Path, tmp_path: Path):
    before = Bundle.open(bundle).sha256
    moved = bundle.rename(tmp_path / "elsewhere")
    assert Bundle.open(moved).sha256 == before


@pytest.mark.parametrize("always_hash", [False, True])
def test_a_changed_byte_is_refused(bundle: Path, always_hash: bool):
    Bundle.open(bundle)
    file = bundle / "unet.onnx"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"unet.onnx was changed: its SHA-256 is .*; copy"):
        Bundle.open(bundle, always_hash=always_hash)


def test_verify_finds_a_byte_that_was_changed_behind_the_files_back(bundle: Path):
    Bundle.open(bundle)
    file = bundle / "unet.onnx"
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(1000)
        byte = stream.read(1)
        stream.seek(1000)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    Bundle.open(bundle)  # same path, size, time and inode: the remembered hash is trusted
    with pytest.raises(BundleError, match=r"unet.onnx was changed"):
        Bundle.open(bundle, always_hash=True)


def test_a_longer_file_is_refused_before_it_is_hashed(bundle: Path):
    with (bundle / "encoder.onnx").open("ab") as file:
        file.write(b"!")
    with pytest.raises(BundleError, match=r"encoder.onnx was changed: it has \d+ bytes"):
        Bundle.open(bundle)


def test_a_missing_file_is_named(bundle: Path):
    (bundle / "golden" / "outputs.npz").unlink()
    with pytest.raises(BundleError, match=r"outputs.npz is missing; copy the bundle again"):
        Bundle.open(bundle)


def test_a_newer_schema_is_refused(bundle: Path):
    edit(bundle, lambda m: m.update(schema=2))
    with pytest.raises(BundleError, match=r"schema 2, this scanside reads up to 1; upgrade"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.pop("encoders"), "manifest.encoders is missing"),
        (lambda m: m["input"].update(scale=float("nan")), "input.scale must be finite"),
        (lambda m: m["encoders"][0]["geometry"].update(affine=[1, 2]), "must be a finite 4x4"),
        (lambda m: m["language"]["template"].update(stop=[1]), "template.stop must be strings"),
        (lambda m: m["language"]["max_tokens"].update(ask="many"), "max_tokens.ask has a wrong"),
        (lambda m: m["diffusion"]["schedules"].update(ddim=8), "schedules.ddim has a wrong type"),
        (lambda m: m["encoders"].clear(), "exactly one encoder with the role decode"),
        (lambda m: m["encoders"][0]["geometry"].update(cube="6"), "geometry.cube has a wrong type"),
        (lambda m: m["encoders"][0]["geometry"].update(grid=[4, 4]), "geometry.grid is no shape"),
        (lambda m: m["encoders"][0]["geometry"].update(mapping="warp"), "knows resize, affine"),
        (lambda m: m["input"].update(kind="eeg"), "input.kind is 'eeg'; this version knows beta"),
        (lambda m: m["language"].update(width=99), r"language takes .*\(1, 12, 99\); it gives"),
        (lambda m: m["diffusion"].update(latent_shape=[4, 9, 9]), "diffusion takes the encoder's"),
        (lambda m: m["diffusion"].update(steps=3), "diffusion.steps is 3, but ddim has tables for"),
        (lambda m: m["diffusion"].update(schedule="heun"), "schedule is 'heun'"),
        (lambda m: m["diffusion"].update(beta=True), "diffusion.beta has a wrong type: True"),
        (lambda m: m["encoders"][0]["outputs"].pop("clip"), "must take tokens and give clip"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], sentence: str
):
    edit(bundle, change)
    with pytest.raises(BundleError, match=sentence):
        Bundle.open(bundle)


def test_a_listed_path_may_not_leave_the_bundle(bundle: Path):
    (bundle.parent / "outside").write_bytes(b"")
    empty = hashlib.sha256(b"").hexdigest()
    edit(bundle, lambda m: m["files"].update({"../outside": {"sha256": empty, "bytes": 0}}))
    with pytest.raises(BundleError, match=r"does not list a file '../outside'"):
        Bundle.open(bundle)


def test_a_file_that_is_not_listed_cannot_be_reached(bundle: Path):
    (bundle / "extra").write_bytes(b"")
    opened = Bundle.open(bundle)
    for name in ("extra", "../extra", "manifest.json"):
        with pytest.raises(BundleError, match=f"does not list a file '{name}'"):
            opened.path(name)


def test_unknown_keys_are_ignored(bundle: Path):
    edit(bundle, lambda m: m.update(later="addition"))
    Bundle.open(bundle)


@pytest.mark.parametrize(
    ("where", "sentence"),
    [("absent", "no such bundle"), ("empty", "has no manifest.json, so it is not a bundle")],
)
def test_no_bundle_there(tmp_path: Path, where: str, sentence: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=sentence):
        Bundle.open(tmp_path / where)


def test_a_manifest_that_is_not_json(bundle: Path):
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest.json is not JSON"):
        Bundle.open(bundle)


def test_pickled_arrays_are_refused(bundle: Path):
    file = bundle / "encoder.npz"
    np.savez(file, active=np.array([{"a": 1}], dtype=object))
    entry = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
    edit(bundle, lambda m: m["files"].update({"encoder.npz": entry}))
    with pytest.raises(BundleError, match=r"encoder.npz is not a plain NumPy archive"):
        Bundle.open(bundle).arrays("encoder.npz")


def test_a_file_is_hashed_once_until_it_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    hashed: list[str] = []
    truth = user_cache.sha256_of
    monkeypatch.setattr(
        user_cache, "sha256_of", lambda path: hashed.append(path.name) or truth(path)
    )
    file = tmp_path / "file"
    file.write_bytes(b"one")
    for _ in range(2):
        memory = HashMemory()
        assert memory.sha256(file) == hashlib.sha256(b"one").hexdigest()
        memory.save()
    assert hashed == ["file"]
    file.write_bytes(b"two!")
    assert HashMemory().sha256(file) == hashlib.sha256(b"two!").hexdigest()
    assert (cache / "hashes.json").is_file()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}'])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, cache: Path, content: str):
    cache.mkdir(parents=True)
    (cache / "hashes.json").write_text(content)
    (tmp_path / "x").write_bytes(b"")
    assert HashMemory().sha256(tmp_path / "x") == hashlib.sha256(b"").hexdigest()


def test_a_cache_that_cannot_be_written_does_no_harm(bundle: Path, cache: Path):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    Bundle.open(bundle)
