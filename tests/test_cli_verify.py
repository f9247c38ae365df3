"""`scanside verify`: exit 0 only if every byte and every answer is as it was at export."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scanside.runtime.cli import main


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def spoil_golden(bundle: Path, name: str, amount: float) -> None:
    """Move one golden output, and keep the hashes right."""
    file = bundle / "golden" / "outputs.npz"
    with np.load(file) as archive:
        arrays = dict(archive)
    arrays[name] = arrays[name] + np.float32(amount) * np.abs(arrays[name]).max()
    np.savez(file, **arrays)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["golden/outputs.npz"] = {
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bytes": file.stat().st_size,
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_good_bundle_passes_in_every_stage(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(tiny_bundle)]) == 0
    printed = capsys.readouterr().out
    for what in ("hashes", "tokens", "clip", "latent", "prefix", "caption", "preview", "image"):
        assert f"\n{what}" in printed
    assert "verified" in printed


def test_json_lists_the_checks(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(tiny_bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    assert document["checks"][0]["what"] == "hashes"
    assert all(check["passed"] for check in document["checks"])


@pytest.mark.parametrize("name", ["clip", "states", "image_latent"])
def test_an_answer_outside_its_tolerance_fails_in_its_own_stage(
    bundle: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    spoil_golden(bundle, name, 0.05)
    assert main(["verify", str(bundle), "--json"]) == 1
    failed = [c["what"] for c in json.loads(capsys.readouterr().out)["checks"] if not c["passed"]]
    assert name in failed
    assert set(failed) <= {name, "image_latent", "image"}


def test_another_text_fails_and_shows_both(bundle: Path, capsys: pytest.CaptureFixture[str]):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["golden"]["caption"] = "a blue star"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(bundle)]) == 1
    printed = capsys.readouterr().out
    assert "instead of 'a blue star'" in printed
    assert "FAILED" in printed


def test_a_changed_byte_fails_before_any_stage_runs(
    bundle: Path, capsys: pytest.CaptureFixture[str]
):
    content = bytearray((bundle / "language.gguf").read_bytes())
    content[-1] ^= 1
    (bundle / "language.gguf").write_bytes(content)
    assert main(["verify", str(bundle)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "language.gguf was changed" in printed.err


def test_a_bundle_without_golden_outputs_cannot_be_verified(
    bundle: Path, capsys: pytest.CaptureFixture[str]
):
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["golden"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(bundle)]) == 1
    assert "has no golden outputs to compare with" in capsys.readouterr().err
