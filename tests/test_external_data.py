"""Graphs whose weights lie beside them, as above protobuf's 2 GiB, here forced at toy size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from scanside.export import to_onnx
from scanside.export.bundle_writer import export_bundle
from scanside.export.compile_graph import Precision, compile_graph
from scanside.runtime import Decoder
from scanside.runtime.bundle import Bundle
from scanside.runtime.cli import main
from scanside.runtime.errors import BundleError

LARGE = ("encoder", "unet", "prompt_encoder", "vae_decoder", "concept_encoder")


@pytest.fixture(scope="module")
def split_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with each large graph's weights in a file of their own."""
    out = tmp_path_factory.mktemp("split") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "_SINGLE_FILE_BYTES", 20_000)
        return export_bundle(tiny_checkpoint, out, quantize="f32")


def test_every_large_graph_has_its_weights_beside_it_and_in_the_manifest(split_bundle: Path):
    files = json.loads((split_bundle / "manifest.json").read_text())["files"]
    for name in LARGE:
        data = split_bundle / f"{name}.onnx.data"
        assert (split_bundle / f"{name}.onnx").stat().st_size < data.stat().st_size
        entry = files[data.name]
        assert entry["bytes"] == data.stat().st_size
        assert entry["precision"] == "fp32"
        assert entry["producer"].startswith("torch ")
    assert set(files) == {
        path.relative_to(split_bundle).as_posix()
        for path in split_bundle.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def test_it_can_be_copied_verifies_and_decodes_as_the_bundle_in_single_files(
    split_bundle: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = shutil.copytree(split_bundle, tmp_path / "elsewhere" / "copy")
    assert main(["verify", str(copy)]) == 0
    assert "verified" in capsys.readouterr().out
    pictures = []
    for bundle in (copy, tiny_bundle):
        with Decoder.open(bundle, threads=1) as decoder:
            volume = bundle / "golden" / "volume.nii.gz"
            pictures.append(decoder.decode(volume, "image", prompt="none", steps=4).image)
    # the same graphs but for weights that two of them share, which are folded at load
    np.testing.assert_allclose(pictures[0].astype(int), pictures[1].astype(int), atol=1)


def test_a_changed_or_missing_weight_file_is_named(split_bundle: Path, tmp_path: Path):
    copy = shutil.copytree(split_bundle, tmp_path / "copy")
    data = copy / "unet.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match=r"unet.onnx.data was changed: its SHA-256 is"):
        Bundle.open(copy, always_hash=True)
    assert main(["verify", str(copy)]) == 1
    data.unlink()
    with pytest.raises(BundleError, match=r"unet.onnx.data is missing; copy the bundle again"):
        Bundle.open(copy)


@pytest.mark.parametrize("half", [False, True], ids=["float32 weights", "half-exact weights"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_leaves_one_graph_and_its_weights(
    precision: Precision, half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 64)).eval()
    if half:
        for parameter in module.parameters():
            parameter.data = parameter.data.half().float()
    x = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    with torch.inference_mode():
        trials = [({"x": x}, {"y": module(torch.from_numpy(x)).numpy()})]
    whole, split = tmp_path / "whole", tmp_path / "split"
    for folder in (whole, split):
        folder.mkdir()
        compile_graph(module, ["y"], folder / "layer.onnx", trials, precision)
        monkeypatch.setattr(to_onnx, "_SINGLE_FILE_BYTES", 1000)
    assert [p.name for p in whole.iterdir()] == ["layer.onnx"]
    assert sorted(p.name for p in split.iterdir()) == ["layer.onnx", "layer.onnx.data"]
    answers = [
        ort.InferenceSession(folder / "layer.onnx", providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )[0]
        for folder in (whole, split)
    ]
    np.testing.assert_array_equal(*answers)
    # no weight is kept twice: in the old precision beside the new one
    weights = sum(p.numel() for p in module.parameters())
    bytes_each = {"fp32": 2 if half else 4, "fp16": 2, "int8": 1}[precision]
    size = (split / "layer.onnx.data").stat().st_size
    assert size < 1.25 * bytes_each * weights + 4096
    places = {
        entry.value
        for tensor in onnx.load(split / "layer.onnx", load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {"layer.onnx.data"}
