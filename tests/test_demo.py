"""The demo from end to end: on a bundle with random weights, and on the one that is shipped."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanside.runtime.bundle import REFERENCE
from scanside.runtime.cli import main
from scanside.runtime.commands.demo import table
from scanside.runtime.demo import PAGE, run_demo
from scanside.runtime.errors import BundleError

PICTURES = ("sagittal", "coronal", "axial", "preview", "image")


@pytest.fixture
def trials(tiny_bundle: Path, tmp_path: Path) -> Path:
    """One trial whose volume is the golden one of the tiny bundle."""
    folder = tmp_path / "trials"
    folder.mkdir()
    shutil.copy(tiny_bundle / "golden" / "volume.nii.gz", folder / "a.nii.gz")
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(folder / "a.png")
    row = {
        "name": "trial-01",
        "subject": "S1",
        "seen": True,
        "average_of": 1,
        "volume": "a.nii.gz",
        "scene": "a.png",
        "caption": "a large red circle at the top on a grey background",
    }
    (folder / "trials.json").write_text(json.dumps({"trials": [row]}))
    return folder


def test_demo_writes_a_page_and_pictures(tiny_bundle: Path, trials: Path, tmp_path: Path):
    told: list[str] = []
    out = tmp_path / "new" / "out"
    outcomes = run_demo(out, bundle=tiny_bundle, trials=trials, progress=told.append)
    expected = {PAGE, *(f"trial-01-{kind}.png" for kind in PICTURES)}
    assert {path.name for path in out.iterdir()} == expected
    assert told == ["opening the bundle", "decoding trial-01, 1 of 1"]
    assert (np.asarray(Image.open(out / "trial-01-image.png")) == outcomes[0].image).all()
    page = (out / PAGE).read_text(encoding="utf-8")
    assert f"total {outcomes[0].total_ms:.0f} ms" in page


def test_the_table_has_each_trial_with_truth_and_answer(
    tiny_bundle: Path, trials: Path, tmp_path: Path
):
    outcomes = run_demo(tmp_path / "out", bundle=tiny_bundle, trials=trials)
    text = table(outcomes)
    assert "trial-01" in text
    assert outcomes[0].trial.caption in text
    assert "".join(piece.text for piece in outcomes[0].caption.pieces) in text


def test_incomplete_demo_data_are_named(tmp_path: Path):
    (tmp_path / "trials.json").write_text('{"trials": [{"name": "trial-01"}]}')
    with pytest.raises(BundleError, match="must list trials with name, subject, seen"):
        run_demo(tmp_path / "out", trials=tmp_path)


shipped = pytest.mark.skipif(
    not (REFERENCE / "manifest.json").exists(), reason="this checkout has no reference bundle"
)


@shipped
def test_a_folder_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file" / "out")]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "file" / "out") in error
    assert error.count("\n") == 1


@shipped
def test_scanside_demo_decodes_the_shipped_trials_without_torch(tmp_path: Path):
    """In a fresh process, as `make demo` runs it."""
    code = (
        "import sys; from scanside.runtime.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or bool({'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-P", "-c", code, "demo", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    listing = json.loads((REFERENCE.parent / "trials" / "trials.json").read_text())
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    for row in listing["trials"]:
        assert row["name"] in done.stdout
        assert row["caption"] in done.stdout
        assert row["caption"] in page
        assert all((tmp_path / f"{row['name']}-{kind}.png").exists() for kind in PICTURES)
    quality = json.loads((REFERENCE / "manifest.json").read_text())["quality"]
    assert f"{quality['scores']['rows'][0]['compiled']:.3f}" in page
