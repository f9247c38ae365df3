"""The kernels in a bundle: listed, verified, and refused when this version could not run them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scanside.kernels.variants import ARCHITECTURES, VARIANTS
from scanside.runtime.bundle import Bundle
from scanside.runtime.cli import main
from scanside.runtime.errors import BundleError
from scanside.runtime.kernels import open_kernels


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the launch contract and the manifest together, so that every hash is right."""
    path, listed = bundle / "kernels" / "kernels.json", bundle / "manifest.json"
    both = {"contract": json.loads(path.read_text()), "manifest": json.loads(listed.read_text())}
    change(both)
    path.write_text(json.dumps(both["contract"]))
    if "kernels/kernels.json" in both["manifest"]["files"]:
        both["manifest"]["files"]["kernels/kernels.json"] |= {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
    listed.write_text(json.dumps(both["manifest"]))


def test_a_bundle_holds_every_variant_for_every_target(tiny_bundle: Path):
    opened = Bundle.open(tiny_bundle)
    kernels = open_kernels(opened)
    assert kernels is not None
    assert kernels.targets == (*(f"sm_{sm}" for sm in ARCHITECTURES), "ptx")
    assert kernels.check() == len(VARIANTS) * len(kernels.targets)
    listed = {name for name in opened.manifest.files if name.startswith("kernels/")}
    assert listed == {f"kernels/{path.name}" for path in (tiny_bundle / "kernels").iterdir()}
    producers = {opened.manifest.raw["files"][name]["producer"] for name in listed}
    assert producers == {f"triton {kernels.document['triton']}"}


def test_verify_says_how_many_binaries_it_found(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["verify", str(tiny_bundle), "--json"]) == 0
    checks = {c["what"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["kernels"]["measured"] == "84 binaries unchanged"


def test_a_bundle_without_kernels_opens(bundle: Path):
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["kernels"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    opened = Bundle.open(bundle)
    assert opened.manifest.kernels is None
    assert open_kernels(opened) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda both: both["contract"].update(contract=9), "another launch contract: its contract"),
        (lambda both: both["manifest"]["kernels"]["targets"].pop(), "ptx, the manifest says"),
        (
            lambda both: both["contract"]["images"]["ptx"].update(file="other.tar.xz"),
            "does not list a file 'kernels/other.tar.xz'",
        ),
        (
            lambda both: both["manifest"]["files"].pop("kernels/kernels.json"),
            "does not list a file 'kernels/kernels.json'",
        ),
        (lambda both: both["manifest"]["kernels"].pop("targets"), "kernels.targets is missing"),
    ],
)
def test_kernels_that_are_not_the_bundles_own_are_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], sentence: str
):
    edit(bundle, change)
    with pytest.raises(BundleError, match=sentence):
        open_kernels(Bundle.open(bundle))


def test_verify_refuses_code_of_another_architecture_under_a_right_file_hash(
    bundle: Path, capsys: pytest.CaptureFixture[str]
):
    folder = bundle / "kernels"
    shutil.copyfile(folder / "sm_86.tar.xz", folder / "sm_89.tar.xz")

    def relist(both: dict[str, Any]) -> None:
        files = both["manifest"]["files"]
        files["kernels/sm_89.tar.xz"] = files["kernels/sm_86.tar.xz"]

    edit(bundle, relist)
    assert main(["verify", str(bundle)]) == 1
    assert "is not the code that kernels.json was written for" in capsys.readouterr().err
