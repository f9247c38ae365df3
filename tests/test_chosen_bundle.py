"""`scanside export --target-latency --min-score`: several ways are compiled, one is kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scanside.export import candidates, chosen_bundle
from scanside.export.choice import Bounds, Option
from scanside.export.chosen_bundle import export_chosen
from scanside.export.held_out import LEAST_TRIALS
from scanside.export.parity import ParityError
from scanside.runtime import Decoder
from scanside.runtime.cli import main
from scanside.runtime.errors import InputError

WAYS = ["--precision", "fp32", "--quantize", "f32,q8_0", "--steps", "1,2", "--threads", "1"]


@pytest.fixture(scope="module")
def trials(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes with pictures and captions that have nothing to do with them."""
    folder, rng = tmp_path_factory.mktemp("trials"), np.random.default_rng(0)
    volume = nib.load(tiny_bundle / "golden/volume.nii.gz")
    data, rows = np.asarray(volume.dataobj), []
    for i in range(LEAST_TRIALS):
        noisy = (data + rng.standard_normal(data.shape) * data.std()).astype(np.float32)
        nib.save(nib.Nifti1Image(noisy, volume.affine), folder / f"{i}.nii.gz")
        # not of the bundle's size, so that it is scaled
        Image.fromarray(rng.integers(0, 255, (48, 40, 3), np.uint8)).save(folder / f"{i}.png")
        rows.append({"volume": f"{i}.nii.gz", "scene": f"{i}.png", "caption": f"picture {i}"})
    (folder / "trials.json").write_text(json.dumps({"trials": rows}))
    return folder


def test_the_bundle_that_is_kept_says_what_it_was_chosen_from(
    tiny_checkpoint: Path, trials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "bundle"
    words = ["export", str(tiny_checkpoint), str(out), *WAYS, "--trials", str(trials)]
    assert main([*words, "--target-latency", "60000"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    manifest = json.loads((out / "manifest.json").read_text())
    choice = manifest["choice"]
    rows, chosen = choice["rows"], choice["chosen"]
    options = {(row["quantize"], row["steps"]) for row in rows}
    assert options == {(q, s) for q in ("f32", "q8_0") for s in (1, 2)}
    for row in rows:
        assert row["latency_ms"]["runs"] == 20
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p95"]
        parts = row["caption"], row["pixcorr"], row["two_way"]
        assert row["score"] == pytest.approx(np.mean(parts), abs=2e-4)
        assert row["memory_mib"] > 50
    assert [row for row in rows if row["front"]]
    assert choice["trials"] == LEAST_TRIALS
    assert choice["cpu"]
    assert choice["target_latency_ms"] == 60000
    # what was chosen is what lies there
    assert manifest["language"]["quantization"] == chosen["quantize"]
    assert manifest["files"]["language.gguf"]["precision"] == chosen["quantize"]
    assert manifest["diffusion"]["steps"] == chosen["steps"]
    assert main(["verify", str(out)]) == 0
    with Decoder.open(out, threads=1) as decoder:
        assert decoder.decode(trials / "0.nii.gz", "image").steps == chosen["steps"]


def test_a_bundle_put_together_is_the_one_that_an_export_writes(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
):
    found = candidates.write_candidates(tiny_checkpoint, tmp_path, ["fp32"], ["q8_0", "f32"], "t")
    whole, again = (json.loads((path / "manifest.json").read_text())
                    for path in (tiny_bundle, found.bundles["fp32", "f32"]))  # fmt: skip
    for part in ("language", "diffusion", "encoders"):
        assert again[part] == whole[part], part
    assert again["files"]["language.gguf"] == whole["files"]["language.gguf"]
    assert again["parity"]["language"] == whole["parity"]["language"]
    for path in found.bundles.values():
        assert main(["verify", str(path)]) == 0


def test_nothing_is_written_when_nothing_fits(
    trials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    def compiled(*_: object) -> candidates.Candidates:
        return candidates.Candidates(bundles={("fp32", "f32"): tiny_bundle})

    monkeypatch.setattr(chosen_bundle, "write_candidates", compiled)
    words = ["export", "random:tiny", str(tmp_path / "b"), *WAYS, "--trials", str(trials)]
    assert main([*words, "--target-latency", "0.01", "--min-score", "0.01"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "scanside export: none of 2 options answers 95 of 100 volumes within 0.01 ms and scores at "
        "least 0.01; the nearest, fp32, f32, "
    )
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_compiled_is_left_out_and_the_reason_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def language(_chain: object, folder: Path, quantize: str) -> SimpleNamespace:
        if quantize == "q4_k_m":
            raise ParityError("q4_k_m is too far")
        return SimpleNamespace()

    def bundle(_root: object, out: Path, *, precision: str, **_: object) -> Path:
        if precision == "int8":
            raise ParityError("int8 is too far")
        return out

    monkeypatch.setattr(candidates, "_write_language", language)
    monkeypatch.setattr(candidates, "export_bundle", bundle)
    monkeypatch.setattr(candidates, "TorchChain", SimpleNamespace(open=lambda root: root))
    made = candidates.write_candidates(
        tmp_path, tmp_path, ["int8", "fp32"], ["q4_k_m", "q8_0"], "name"
    )
    assert list(made.bundles) == [("fp32", "q8_0")]
    assert made.refused == {"q4_k_m": "q4_k_m is too far", "int8": "int8 is too far"}
    with pytest.raises(ParityError, match="int8 is too far"):
        candidates.write_candidates(tmp_path, tmp_path, ["int8"], ["q8_0"], "name")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--target-latency", "0"], "--target-latency must be above 0 and finite; got 0"),
        (["--min-score", "1.5"], "--min-score must be above 0 and at most 1; got 1.5"),
        (["--min-score", "0.5"], "--trials is missing: a score needs held-out trials"),
        (["--min-score", "0.5", "--trials", "/nowhere"], "--trials must be a folder with trials"),
        (["--min-score", "0.5", "--steps", "3"], "--steps must be of 1, 2, 4, 8, 10, 20, 50; got"),
        (["--min-score", "0.5", "--quantize", "q3"], "--quantize must be one of f32"),
        (["--min-score", "0.5", "--threads", "0"], "--threads must be 1 to"),
        (["--min-score", "0.5", "--targets", "cuda"], "--targets must be cpu"),
        (["--precision", "fp32,int8"], "--precision names fp32, int8, but a bundle holds one"),
        (["--quantize", "q8_0,q6_k"], "--quantize names q8_0, q6_k, but a bundle holds one"),
        (["--steps", "4"], "--steps is used with --target-latency or --min-score only"),
    ],
)
def test_bounds_that_cannot_be_used_are_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", "random:tiny", str(tmp_path / "b"), *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"scanside export: {sentence}"), said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_precision_that_does_not_exist_is_wrong_usage(tmp_path: Path):
    assert main(["export", "random:tiny", str(tmp_path / "b"), "--precision", "fp8,fp32"]) == 2


def test_a_folder_that_is_in_use_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not an empty folder"):
        export_chosen("reference", tmp_path, Bounds(min_score=0.5))


def test_options_say_what_they_are():
    assert str(Option(precision="int8", quantize="q4_k_m", steps=1)) == "int8, q4_k_m, 1 step"
