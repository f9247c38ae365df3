"""`scanside decode`, as a person or a script types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scanside.runtime.cli import main


@pytest.fixture
def volume(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_bundle / "golden" / "volume.nii.gz", tmp_path / "trial.nii.gz"))


def test_decode_writes_pictures_and_result(
    tiny_bundle: Path, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "a" / "b"
    code = main(["decode", str(tiny_bundle), str(volume), "--out", str(out)])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        "image.png",
        "preview.png",
        "result.json",
    ]
    result = json.loads((out / "result.json").read_text())
    assert f"caption: {result['caption']}" in printed.out
    assert np.asarray(Image.open(result["image"])).shape == (32, 32, 3)


def test_a_run_without_a_picture_leaves_none_of_an_earlier_run(
    tiny_bundle: Path, volume: Path, tmp_path: Path
):
    out = tmp_path / "out"
    words = ["decode", str(tiny_bundle), str(volume), "--out", str(out), "--task"]
    assert main([*words, "caption,image"]) == 0
    assert main([*words, "caption,preview"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["preview.png", "result.json"]


def test_json_is_one_object_with_the_promised_keys(
    tiny_bundle: Path, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = ["decode", str(tiny_bundle), str(volume), "--json", "--out", str(out)]
    words += ["--task", "caption,describe,prompt,image,preview", "--ask", "One?", "--ask", "Two?"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((out / "result.json").read_text())
    assert set(document) == {
        *("caption", "description", "prompt", "answers", "image", "preview", "latency_ms"),
        *("placement", "device", "steps", "seed", "degraded", "bundle", "log_prob"),
    }
    assert set(document["log_prob"]) == {"caption", "describe", "prompt", "ask_0", "ask_1"}
    assert [turn["question"] for turn in document["answers"]] == ["One?", "Two?"]
    assert {
        *("load", "preprocess", "encode", "language_first_token", "language", "diffusion", "vae"),
        "total",
    } <= set(document["latency_ms"])
    assert document["image"] == str(out / "image.png")


def test_keys_that_were_not_asked_for_are_left_out(
    tiny_bundle: Path, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["decode", str(tiny_bundle), str(volume), "--task", "caption", "--json"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"image", "preview", "prompt", "description", "answers", "steps"}.isdisjoint(document)
    assert "token_log_probs" not in document


def test_a_picture_alone_brings_no_text(
    tiny_bundle: Path, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["decode", str(tiny_bundle), str(volume), "--task", "image", "--json", "--steps", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"caption", "prompt", "description", "answers"}.isdisjoint(document)


def test_log_probabilities_of_tokens_can_be_asked_for(
    tiny_bundle: Path, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["decode", str(tiny_bundle), str(volume), "--task", "caption", "--json"]
    assert main([*words, "--token-log-probs", "--out", str(tmp_path / "out")]) == 0
    document = json.loads(capsys.readouterr().out)
    tokens = document["token_log_probs"]["caption"]
    mean = np.mean([one["log_prob"] for one in tokens])
    # each number is rounded to four decimals
    assert mean == pytest.approx(document["log_prob"]["caption"], abs=1e-4)


def test_pictures_say_where_they_come_from(
    tiny_bundle: Path, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = ["decode", str(tiny_bundle), str(volume), "--out", str(out), "--json"]
    words += ["--task", "image", "--prompt", "a café", "--seed", "7", "--steps", "2"]
    assert main(words) == 0
    bundle = json.loads(capsys.readouterr().out)["bundle"]
    with Image.open(out / "image.png") as picture:
        info = picture.info
    assert info["Software"] == "scanside"
    assert info["scanside:bundle"] == bundle
    keys = ("seed", "steps", "schedule", "schedule_steps", "beta", "prompt")
    assert [info[f"scanside:{k}"] for k in keys] == ["7", "2", "ddim", "2", "0.93", "a café"]


def test_files_go_beside_the_working_folder_by_default(
    tiny_bundle: Path, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["decode", str(tiny_bundle), str(volume), "--task", "preview"]) == 0
    assert (tmp_path / "trial-decoded" / "preview.png").is_file()


def damaged(kind: str, volume: Path) -> Path:
    """A volume that cannot be decoded."""
    image = nib.load(volume)
    data = image.get_fdata(dtype=np.float32)
    if kind == "truncated":
        volume.write_bytes(volume.read_bytes()[:5000])
        return volume
    if kind == "not nifti":
        volume.write_bytes(b"text")
        return volume
    if kind == "absent":
        return volume.with_name("absent.nii.gz")
    if kind == "zero":
        data[:] = 0
    if kind == "nan":
        data[2, 3, 4] = np.nan
    if kind == "4-D":
        data = np.stack([data, data], -1)
    if kind == "5-D":
        data = data[..., None, None] * np.ones(2, np.float32)
    affine = image.affine + (np.array([[0, 0, 0, 5000]] + [[0] * 4] * 3) if kind == "far" else 0)
    nib.save(nib.Nifti1Image(data, affine), volume)
    return volume


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("absent", "no such file"),
        ("not nifti", "is not a NIfTI file"),
        ("truncated", "is truncated or damaged"),
        ("5-D", "expected (X, Y, Z), or (X, Y, Z, T) with an index"),
        ("4-D", "holds 2 volumes; say which by its index, 0 to 1"),
        ("zero", "is all zero"),
        ("nan", "has 1 NaN and 0 infinite voxels of"),
        ("far", "does not overlap what the model reads"),
    ],
)
def test_a_bad_volume_is_one_sentence_exit_1_and_nothing_written(
    tiny_bundle: Path,
    volume: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    sentence: str,
):
    out = tmp_path / "out"
    path = damaged(kind, volume)
    code = main(["decode", str(tiny_bundle), str(path), "--out", str(out), "--json"])
    printed = capsys.readouterr()
    assert (code, printed.out) == (1, "")
    assert printed.err.startswith("scanside decode: ")
    assert printed.err.count("\n") == 1
    assert sentence in printed.err
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--task", "sing"],
        ["--steps", "many"],
        ["--colour", "red"],
        ["--deadline", "soon"],
    ],
)
def test_wrong_usage_is_exit_2(
    tiny_bundle: Path, volume: Path, words: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["decode", str(tiny_bundle), str(volume), *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage: scanside" in printed.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--steps", "3"], "--steps must be one of 1, 2, 4, 8"),
        (["--deadline", "0"], "--deadline must be above 0 seconds; got 0.0"),
        (["--device", "tpu"], "--device must be one of cpu, cuda, rtx, tensorrt; got 'tpu'"),
        (["--index", "2"], "has no volume 2; it holds 1"),
        (["--device", "cuda"], "device 'cuda' was asked for"),
        (["--ask", " "], "empty question"),
    ],
)
def test_what_this_bundle_cannot_do_is_exit_1(
    tiny_bundle: Path,
    volume: Path,
    tmp_path: Path,
    words: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "out"
    assert main(["decode", str(tiny_bundle), str(volume), "--out", str(out), *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(
    tiny_bundle: Path, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    words = ["decode", str(tiny_bundle), str(volume), "--task", "preview"]
    assert main([*words, "--out", str(tmp_path / "file" / "out")]) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_a_deadline_can_be_given(
    tiny_bundle: Path, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["decode", str(tiny_bundle), str(volume), "--deadline", "600", "--json"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 8


def test_the_console_command_needs_no_torch(tiny_bundle: Path, volume: Path, tmp_path: Path):
    """In a fresh process in which torch cannot be imported at all."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'diffusers', 'optimum', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        "from scanside.runtime.cli import main\n"
        "raise SystemExit(main(sys.argv[1:]))"
    )
    words = ["decode", str(tiny_bundle), str(volume), "--json", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *words], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["image"] == str(tmp_path / "out" / "image.png")
