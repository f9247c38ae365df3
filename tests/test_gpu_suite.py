"""The GPU suite without a GPU: what does not fit is left out, what fails loses only itself."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from scanside.runtime.bundle import REFERENCE

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from hollow_graph import empty, fill, notes_file, weights_file  # noqa: E402

ROWS = 256


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """x @ w + b with a weight of fp16 that is large, and a bias that is not."""
    rng = np.random.default_rng(0)
    weight = (0.03 * rng.standard_normal((ROWS, ROWS))).astype(np.float16)
    bias = rng.standard_normal(ROWS).astype(np.float16)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    made = helper.make_graph(
        [node],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, ROWS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, ROWS])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "small.onnx"
    onnx.save(model, path)
    return path


def test_a_hollow_graph_is_small_and_computes_once_it_is_filled(graph: Path, tmp_path: Path):
    hollow = tmp_path / "hollow" / "small.onnx"
    noted = empty(graph, hollow)
    assert [spread["name"] for spread in noted] == ["w"]
    assert noted[0]["std"] == pytest.approx(0.03, rel=0.05)
    assert hollow.stat().st_size < 2000 < graph.stat().st_size
    assert fill(hollow.parent) == 2 * ROWS**2
    drawn = np.fromfile(weights_file(hollow), np.float16)
    assert drawn.std() == pytest.approx(0.03, rel=0.05)
    session = onnxruntime.InferenceSession(hollow, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.eye(1, ROWS, dtype=np.float16)})
    bias = numpy_helper.to_array(onnx.load(graph).graph.initializer[1])
    wanted = drawn[:ROWS].astype(np.float32) + bias
    np.testing.assert_allclose(found[0].astype(np.float32), wanted, rtol=2e-3, atol=2e-3)


def test_a_bundle_travels_without_its_weights_and_opens_with_drawn_ones(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
):
    from gpu_prepare import list_files
    from hollow_bundle import hollow

    from scanside.runtime import Decoder

    full = tmp_path / "full"
    hollow(tiny_checkpoint, tiny_bundle, full)
    configs = {path.stem for path in (full / "configs").iterdir()}
    assert configs == {"encoder", "unet", "vae", "preview_decoder"}
    assert (full / "tokenizer/tokenizer.json").is_file()
    for graph in tiny_bundle.glob("*.onnx"):
        emptied = sum(t["values"] for t in json.loads(notes_file(full / graph.name).read_text()))
        assert (full / graph.name).stat().st_size <= graph.stat().st_size - 2 * emptied + 200_000
    assert not list(full.glob("*.weights"))
    fill(full)
    list_files(full)
    volume = tiny_bundle / "golden/volume.nii.gz"
    with Decoder.open(full, threads=1, warm=False) as decoder:
        result = decoder.decode(volume, ("image",), prompt="none", steps=1)
    assert result.image is not None


def test_the_same_weights_are_drawn_everywhere(graph: Path, tmp_path: Path):
    hollow = tmp_path / "hollow" / "small.onnx"
    empty(graph, hollow)
    fill(hollow.parent)
    first = weights_file(hollow).read_bytes()
    fill(hollow.parent)
    assert weights_file(hollow).read_bytes() == first


def test_weights_that_are_not_finite_are_refused(graph: Path, tmp_path: Path):
    model = onnx.load(graph)
    broken = np.full((ROWS, ROWS), np.inf, np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "w"))
    onnx.save(model, graph)
    with pytest.raises(ValueError, match="w is not finite"):
        empty(graph, tmp_path / "hollow.onnx")


def test_a_random_model_of_quantised_blocks_answers(tmp_path: Path):
    from gpu_language import language_part
    from gpu_prepare import LANGUAGES, gguf_part, language_file

    full = tmp_path / "full"
    full.mkdir()
    (full / "tokenizer").symlink_to(BENCHMARKS.parent / "export/reference/checkpoint/llm")
    given = argparse.Namespace(
        full=full, scratch=tmp_path, small=True, threads=1, device="cpu", scale=0.01
    )
    written = gguf_part(given, "")
    found = language_part(given, "")
    assert list(found) == list(written) == list(LANGUAGES)
    for quantization, one in found.items():
        path = language_file(tmp_path, quantization)
        assert written[quantization]["bytes"] == one["gguf_bytes"] == path.stat().st_size
        assert one["prefill"]["tokens"] == one["fork"]["rows"] + one["prompt_tokens"]
        assert one["token"]["wall_ms"]["runs"] == 128
        assert one["way"] == "as the runtime opens it"
        log = (tmp_path / "parts" / f"{path.stem}_as_the_runtime_opens_it.log").read_text()
        assert "llama_model_loader" in log


def test_the_whole_decoder_is_measured_with_a_model_in_the_toys_place(
    tiny_bundle: Path, tmp_path: Path
):
    from gpu_prepare import SPOKEN, gguf_part, spoken_bundle
    from gpu_spoken import PHASES, spoken_part

    full = tmp_path / "full"
    shutil.copytree(tiny_bundle, full)
    (full / "tokenizer").mkdir()
    for path in (BENCHMARKS.parent / "export/reference/checkpoint/llm").glob("*token*"):
        shutil.copyfile(path, full / "tokenizer" / path.name)
    given = argparse.Namespace(
        full=full, scratch=tmp_path, small=True, threads=1, device="cpu", scale=0.02
    )
    gguf_part(given, "")
    before = (full / "manifest.json").read_bytes()
    found = spoken_part(given, "")
    assert (full / "manifest.json").read_bytes() == before
    assert found["first caption token"]["wall_ms"]["runs"] == 4
    both = found["caption and picture"]
    assert both["rounds"] == 2
    for name in ("beside", "after"):
        assert both[name].keys() == set(PHASES)
        until = [both[name][phase]["min"] for phase in ("until_text", "until_image", "total")]
        assert 0 < until[0] <= until[1] <= until[2]
    spoken = json.loads((spoken_bundle(tmp_path) / "manifest.json").read_text())["language"]
    assert spoken["quantization"] == SPOKEN
    assert (tmp_path / "spoken" / spoken["file"]).samefile(tmp_path / f"language_{SPOKEN}.gguf")


def test_a_process_that_dies_leaves_its_log_and_the_next_way_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import gpu_language

    dies = "import os, sys; sys.stderr.write('llama.cpp said this'); sys.stderr.flush(); os.abort()"
    found = gpu_language.apart([sys.executable, "-c", dies], tmp_path / "answer.json")
    assert found["died"] == "SIGABRT"
    assert found["log"][0].startswith("llama.cpp said this")
    lives = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"open_s\": 1}')"
    answer = tmp_path / "other.json"
    found = gpu_language.apart([sys.executable, "-c", lives, str(answer)], answer)
    assert found == {"open_s": 1}
    # a file that is no model: every way dies, and each says why
    (tmp_path / "language_f16.gguf").write_bytes(b"GGUF and nothing more")
    monkeypatch.setattr(gpu_language, "WAYS", dict(list(gpu_language.WAYS.items())[:2]))
    given = {"small": True, "threads": 1, "device": "cpu", "scale": 0.01}
    both = gpu_language.language_part(argparse.Namespace(scratch=tmp_path, **given), "")
    found = both["f16"]
    assert found["failed"] == "llama.cpp's process died: exit code 1"
    assert list(found["died"]) == list(gpu_language.WAYS)
    assert any("cannot load it" in line for line in found["died"]["one CPU thread"]["log"])


def test_graphs_are_fused_where_they_lie(tmp_path: Path):
    from gpu_prepare import fuse

    for name in ("encoder", "unet", "vae_decoder"):
        shutil.copyfile(REFERENCE / f"{name}.onnx", tmp_path / f"{name}.onnx")
    assert fuse(tmp_path, []) == {}
    found = fuse(tmp_path, ["attention", "norms"])
    assert found["attention of unet"] == "14 as one operator each"
    assert found["norms of vae_decoder"].startswith("17 as one operator each")
    kinds = {node.op_type for node in onnx.load(tmp_path / "unet.onnx").graph.node}
    assert {"GroupNorm", "MultiHeadAttention"} < kinds
    assert not {"InstanceNormalization", "Softmax"} & kinds


def test_variants_are_of_fusions_that_there_are(tmp_path: Path):
    import gpu_variants
    from gpu_prepare import fuse

    from scanside.export.fusing import FUSIONS

    for _, fused, _, _ in gpu_variants.VARIANTS:
        assert list(fused) == [name for name in FUSIONS if name in fused]
    with pytest.raises(SystemExit, match="there is no fusion cuda, only attention, norms"):
        fuse(tmp_path, ["cuda"])


def test_a_folder_of_wheels_is_installed_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import gpu_wheels

    with pytest.raises(SystemExit, match="holds no wheels"):
        gpu_wheels.install(tmp_path, tmp_path / "site")
    wheel = tmp_path / "scanside_probe-1.0-py3-none-any.whl"
    about = "scanside_probe-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("scanside_probe.py", "here = True\n")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: scanside-probe\nVersion: 1.0\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "scanside_probe.py,,\n")
    gpu_wheels.install(tmp_path, tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    path = gpu_wheels.found_first(tmp_path, tmp_path)["PYTHONPATH"]
    assert path == f"{tmp_path / 'site'}{os.pathsep}elsewhere"
    words = [sys.executable, "-c", "import scanside_probe; print(scanside_probe.here)"]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
    assert gpu_wheels.found_first(None, tmp_path) == {}
    wheel.write_bytes(b"no wheel")
    with pytest.raises(SystemExit, match="cannot be installed"):
        gpu_wheels.install(tmp_path, tmp_path / "site")


def test_every_part_has_what_runs_it():
    """Parts import what they need when they run, so that a wrong name shows only then."""
    import gpu_suite

    for part in gpu_suite.PARTS:
        kind = part.name.partition(" ")[0]
        engines = ("encoder", "unet", "vae_decoder", "preview_decoder")
        assert callable(gpu_suite._worker("engine" if part.name in engines else kind))
    for name in gpu_suite.PREPARATIONS:
        assert callable(gpu_suite._worker(name.partition(" ")[0]))


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver")
def test_a_process_under_the_sanitizer_that_is_not_clean_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a program in the sanitizer's place that ends as it does."""
    import gpu_device

    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "$2: $8"\n[ "$2" != racecheck ] || exit 9\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = gpu_device.sanitized(["memcheck"], ["a.py"])
    assert found == {"memcheck": {"exit_code": 0, "last_words": ["memcheck: a.py"]}}
    with pytest.raises(SystemExit, match="racecheck: a.py"):
        gpu_device.sanitized(["memcheck", "racecheck"], ["a.py"])


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver")
def test_without_a_gpu_what_needs_one_says_so_in_a_sentence(tmp_path: Path):
    (tmp_path / "manifest.json").touch()
    for name, given in (
        ("gpu_suite", [str(tmp_path), "--scratch", str(tmp_path)]),
        ("gpu_beside", [str(tmp_path)]),
        ("gpu_variants", [str(tmp_path)]),
        ("gpu_profile", [str(tmp_path)]),
        ("gpu_chain_once", []),
    ):
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / f"{name}.py"), *given],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "no NVIDIA driver was found" in done.stderr
        assert done.stderr.count("\n") == 1


def test_what_fails_and_what_does_not_fit_is_said(tmp_path: Path):
    kept = tmp_path / "suite.json"
    words = [str(BENCHMARKS / "gpu_suite.py"), str(tmp_path), "--device", "cpu", "--small"]
    words += ["--scratch", str(tmp_path / "scratch"), "--json", str(kept), "--budget", "70"]
    words += ["--only", "language", "steady", "--prepare-s", "0", "--pictures", "4000"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 1
    parts = json.loads(kept.read_text())["parts"]
    assert json.loads(kept.read_text())["runs"][0]["cores"] >= 1
    # there is no tokenizer in that folder, so no model was written
    assert parts["language"]["failed"] == "exit code 1"
    assert "was not written in time" in parts["language"]["last_words"][-1]
    # 12 s, 5000 previews and 4000 pictures
    assert parts["steady"]["left_out"].startswith("about 144 s were needed")
    more = [*words[:-7], "--only", "eager", "--prepare-s", "0", "--add"]
    subprocess.run([sys.executable, *more], capture_output=True, text=True)
    found = json.loads(kept.read_text())
    assert found["parts"]["language"] == parts["language"]
    assert found["parts"]["eager"]["run"] == 1
    assert [run["command"].split()[-1] for run in found["runs"]] == ["4000", "--add"]
    found["runs"][0]["nvidia_smi"] = {"name": "another card"}
    kept.write_text(json.dumps(found))
    done = subprocess.run([sys.executable, *more], capture_output=True, text=True)
    assert done.stderr.strip() == f"{kept} is of another card, this is None; leave --add out"
    assert json.loads(kept.read_text()) == found
