"""`scanside bench`: measured in full on the shipped bundle, with few runs and no claim of speed."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanside.runtime.bench.comparison import changes, check_comparable, verdict
from scanside.runtime.bench.measure import measure
from scanside.runtime.bench.plan import Plan
from scanside.runtime.bench.report import report
from scanside.runtime.bench.warm import _check_same
from scanside.runtime.bundle import REFERENCE
from scanside.runtime.cli import main
from scanside.runtime.errors import BundleError, InputError

FEW = ["--runs", "6", "--warm-up", "1", "--cold", "1", "--threads", "1", "--steps", "1"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One run's JSON file and what it printed."""
    import contextlib
    import io

    path = tmp_path_factory.mktemp("bench") / "first.json"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["bench", "reference", *FEW, "--json", str(path)]) == 0
    return path, out.getvalue()


@pytest.fixture
def document(written: tuple[Path, str]) -> dict[str, Any]:
    return json.loads(written[0].read_text())


def test_every_answer_is_timed_from_the_arrival_as_file_and_as_array(document: dict[str, Any]):
    variants = document["warm"]["variants"]
    assert list(variants) == ["file", "file again", "array"]
    for variant in variants.values():
        answers = variant["answers_ms"]
        assert list(answers) == ["preview", "first_token", "text", "image", "total"]
        assert all(row["runs"] == 6 for row in answers.values())
        medians = [row["p50"] for row in answers.values()]
        assert medians == sorted(medians), "they come one after the other"
        assert {"load", "preprocess", "encode", "preview", "language", "diffusion", "vae"} <= set(
            variant["stages_ms"]
        )
        assert set(variant["engines_ms"]) == {
            "kernel",
            "encoder",
            "llama.cpp",
            "prompt_encoder",
            "unet",
            "vae_decoder",
        }
        assert variant["degraded"] == {}


def test_the_engines_and_the_runtimes_own_share_make_up_the_total(document: dict[str, Any]):
    variant = document["warm"]["variants"]["array"]
    least = sum(row["min"] for row in variant["engines_ms"].values()) + variant["own_ms"]["min"]
    most = sum(row["max"] for row in variant["engines_ms"].values()) + variant["own_ms"]["max"]
    total = variant["answers_ms"]["total"]
    assert least <= total["max"]
    # less the reading of the file, of which an array needs only the check of its values
    assert most + variant["stages_ms"]["load"]["max"] >= total["min"]
    assert 0 < variant["own_share"] < 1


def test_a_new_process_tells_when_it_is_imported_open_and_has_each_answer(
    document: dict[str, Any],
):
    row = document["cold"]["bundles"]["reference"]
    order = ["imported", "opened", "preview", "first_token", "image", "total"]
    assert list(row["answers_ms"]) == order
    seconds = [answer["max"] for answer in row["answers_ms"].values()]
    assert seconds == sorted(seconds)
    assert row["memory_mib"]["peak"] >= row["memory_mib"]["anonymous"] > 10


def test_size_and_hash_are_those_of_the_bundle(document: dict[str, Any]):
    row = document["bundles"]["reference"]
    assert row["bytes"] == sum(f.stat().st_size for f in REFERENCE.rglob("*") if f.is_file())
    assert row["checks_passed"] > 10


def test_device_versions_commit_date_load_and_command_are_kept(document: dict[str, Any]):
    for key in ("cpu", "cores", "versions", "commit", "date", "load_before", "command"):
        assert key in document
    assert "onnxruntime" in document["versions"]
    assert document["command"].startswith("scanside")
    for part in ("warm", "cold"):
        assert {"others_cores", "under_load"} <= set(document[part])


def test_the_table_says_what_a_percentile_needs_and_what_is_within_the_noise(
    written: tuple[Path, str], document: dict[str, Any]
):
    printed = written[1]
    assert "needs 1000" in printed
    assert "noise, the same variant twice: preview" in printed
    assert "array takes of file, to total:" in printed
    assert f"{document['bundles']['reference']['sha256'][:12]}" in printed
    document["warm"] |= {"under_load": True, "others_cores": 1.5}
    assert "UNDER LOAD: others took 1.50 cores" in report(document)


def test_missed_deadlines_are_shares_for_each_repetition_time(
    capsys: pytest.CaptureFixture[str],
):
    words = ["--runs", "3", "--warm-up", "0", "--cold", "0", "--task", "preview"]
    assert main(["bench", "reference", *words, "--tr", "0.000001,1000", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)  # exactly one object
    missed = found["warm"]["variants"]["file"]["missed"]
    assert missed == {"1e-06": {"preview": 1.0, "total": 1.0}, "1000": {"preview": 0, "total": 0}}
    assert found["noise"] == {}
    assert all(row["needs"] == 6 for row in found["ratios"])
    assert found["cold"]["bundles"] == {}


def test_two_bundles_take_turns(tiny_bundle: Path, tmp_path: Path):
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    both = {"bundle": str(tiny_bundle), "beside": (str(other),), "tasks": ("preview",)}
    plan = Plan(**both, runs=6, warm_up=0, cold=1, threads=1)
    found = measure(plan)
    assert f"file, {other}" in found["warm"]["variants"]
    assert {row["of"] for row in found["ratios"]} == {"array", f"file, {other}"}
    assert list(found["cold"]["bundles"]) == [str(tiny_bundle), str(other)]
    assert found["volumes"] == ["volume.nii.gz"], "a bundle's own golden volume"


def test_a_bundle_whose_verification_fails_is_not_timed(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = shutil.copytree(tiny_bundle, tmp_path / "bad")
    manifest = json.loads((bad / "manifest.json").read_text())
    manifest["golden"]["caption"] = "a blue star"
    (bad / "manifest.json").write_text(json.dumps(manifest))
    assert main(["bench", str(bad), *FEW]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "is not timed, for it does not answer as it did at export: caption" in printed.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--runs", "0"], "--runs must be at least 1; got 0"),
        (["--cold", "-1"], "--cold must be at least 0; got -1"),
        (["--tr", "0"], "--tr must be above 0 seconds; got 0.0"),
        (["--task", "sing"], "--task must be of preview"),
        (["--beside", "reference"], "--beside names a bundle twice"),
        (["--steps", "77", "--cold", "0"], "--steps must be one of"),
        (["--compare", "nowhere.json"], "nowhere.json cannot be compared with"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", "reference", "--warm-up", "0", *words]) == 1
    assert sentence in capsys.readouterr().err


def test_a_process_that_fails_is_told_by_its_own_message(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "reference", *FEW[:6], "--steps", "77"]) == 1
    assert "a new process that was to decode failed: " in capsys.readouterr().err


def slowed(document: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same run, had everything from the file taken so many times as long."""
    found = copy.deepcopy(document)
    for row in found["warm"]["variants"]["file"]["answers_ms"].values():
        row["p50"] *= factor
        row["interval"]["p50"] = [factor * edge for edge in row["interval"]["p50"]]
    return found


@pytest.fixture
def quiet(document: dict[str, Any]) -> dict[str, Any]:
    """The document of a run in which the noise was a percent, and intervals narrow."""
    for noise in document["noise"].values():
        noise["factor"] = 1.01
    for variant in document["warm"]["variants"].values():
        for row in variant["answers_ms"].values():
            row["interval"] = {"p50": [0.99 * row["p50"], 1.01 * row["p50"]]}
    return document


@pytest.mark.parametrize(
    ("factor", "word"), [(1.0, "same"), (1.06, "same"), (1.5, "worse"), (0.6, "better")]
)
def test_a_change_counts_only_beyond_intervals_and_tolerance(
    quiet: dict[str, Any], factor: float, word: str
):
    found = changes(quiet, slowed(quiet, factor), 0.05)
    assert verdict(found) == word
    assert {c.verdict for c in found if c.what.startswith("warm, array")} <= {"same", "unknown"}


def test_noise_of_either_run_widens_what_counts_as_the_same(quiet: dict[str, Any]):
    slow = slowed(quiet, 1.5)
    assert verdict(changes(quiet, slow, 0.05)) == "worse"
    slow["noise"]["total"]["factor"] = 1.6
    assert verdict(changes(quiet, slow, 0.05)) == "same"


def test_more_memory_and_a_larger_bundle_are_worse(quiet: dict[str, Any]):
    larger = copy.deepcopy(quiet)
    larger["bundles"]["reference"]["bytes"] *= 2
    larger["cold"]["bundles"]["reference"]["memory_mib"]["peak"] *= 2
    worse = {c.what for c in changes(quiet, larger, 0.05) if c.verdict == "worse"}
    assert worse == {"on disk (MiB)", "peak memory of the host (MiB)"}


def test_another_machine_or_other_work_is_not_compared(quiet: dict[str, Any]):
    check_comparable(quiet, copy.deepcopy(quiet))
    with pytest.raises(InputError, match="cpu was Abacus, is .* Measure the old state here"):
        check_comparable({**quiet, "cpu": "Abacus"}, quiet)


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1e-3, 1)])
def test_compare_is_a_gate(
    quiet: dict[str, Any],
    tmp_path: Path,
    factor: float,
    code: int,
    capsys: pytest.CaptureFixture[str],
):
    """Against itself, with a tolerance that no machine exceeds; and against a thousandth."""
    old = tmp_path / "old.json"
    old.write_text(json.dumps(slowed(quiet, factor)))
    words = [*FEW, "--tolerance", "9900", "--compare", str(old), "--json", "-"]
    assert main(["bench", "reference", *words]) == code
    found = json.loads(capsys.readouterr().out)["comparison"]
    assert found["verdict"] == ("worse" if code else "same")
    assert found["with"]["commit"] == quiet["commit"]


def test_a_comparison_with_something_else_is_refused_before_anything_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other.json"
    other.write_text('{"question": "something else"}')
    assert main(["bench", "reference", "--compare", str(other)]) == 1
    assert "was not written by scanside bench" in capsys.readouterr().err


def test_variants_that_answer_differently_are_not_timed():
    from types import SimpleNamespace

    def answer(seed: int) -> Any:
        image = np.random.default_rng(seed).integers(0, 255, (4, 4, 3)).astype(np.uint8)
        return SimpleNamespace(bundle="same", caption="a", image_prompt="b", image=image)

    bundle = SimpleNamespace(root="bundle")
    variant = SimpleNamespace(tasks=("image",), decoder=SimpleNamespace(bundle=bundle))
    variants: Any = {"file": variant, "array": variant}
    _check_same(variants, {"file": answer(0), "array": answer(0)})
    with pytest.raises(BundleError, match="'array' answered differently from 'file'"):
        _check_same(variants, {"file": answer(0), "array": answer(1)})
