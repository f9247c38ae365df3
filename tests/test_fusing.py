"""`--fuse`: graphs are fused as far as was asked, held against what they were, and say so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

from scanside.export import fusing
from scanside.export.bundle_writer import export_bundle
from scanside.export.fusing import check_fusing, fuse_graphs
from scanside.export.graph_index import DOMAIN
from scanside.export.group_norm_parts import in_parts
from scanside.export.parity import ParityError
from scanside.runtime import Decoder, machine
from scanside.runtime.bundle import REFERENCE
from scanside.runtime.errors import BundleError, InputError

from .test_group_norm import normalised


def test_graphs_are_compared_and_told_of(tmp_path: Path) -> None:
    onnx.save(normalised(), tmp_path / "unet.onnx")
    onnx.save(normalised(silu=False), tmp_path / "vae_decoder.onnx")
    said = list[str]()
    fused = fuse_graphs(tmp_path, "cuda", "fp32", said.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unet.onnx", "vae_decoder.onnx"]
    assert fused["unet.onnx"]["norms"]["operator"] == f"{DOMAIN}.GroupNorm"
    assert fused["unet.onnx"]["norms"]["with_silu"] == fused["unet.onnx"]["norms"]["fused"] == 1
    assert fused["vae_decoder.onnx"]["norms"]["with_silu"] == 0
    assert 0 < fused["unet.onnx"]["relative"] < 1e-5
    assert said[0] == "norms of unet: 1 as one operator each, 1 with the SiLU behind them"


def test_nothing_is_touched_without_being_asked(tmp_path: Path) -> None:
    onnx.save(normalised(), tmp_path / "unet.onnx")
    before = (tmp_path / "unet.onnx").read_bytes()
    assert fuse_graphs(tmp_path, "none", "fp32", print) == {}
    assert fuse_graphs(tmp_path, "attention", "fp32", print) == {"unet.onnx": {"relative": 0.0}}
    assert (tmp_path / "unet.onnx").read_bytes() == before


def test_a_graph_that_means_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the comparison can fail."""

    def wrongly(model: ModelProto) -> ModelProto:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "groups":
                    attribute.i = 2
        return in_parts(model)

    monkeypatch.setattr(fusing, "IN_PARTS", (wrongly,))
    onnx.save(normalised(), tmp_path / "unet.onnx")
    with pytest.raises(ParityError, match=r"unet\.onnx with fused operators.* without --fuse cuda"):
        fuse_graphs(tmp_path, "cuda", "fp32", print)
    assert [path.name for path in tmp_path.iterdir()] == ["unet.onnx"]


def test_such_a_bundle_says_what_was_done_and_that_the_cpu_does_not_run_it(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = export_bundle(
        tiny_checkpoint, tmp_path / "bundle", targets=["cuda"], precision="fp16", fuse="cuda"
    )
    told = json.loads((bundle / "manifest.json").read_text())["fused"]
    assert all(fusions["relative"] < 5e-3 for fusions in told.values())
    assert told["unet.onnx"]["relative"] > 1e-5, "in half precision it rounds in another place"
    assert {"attention", "norms", "skip"} <= told["unet.onnx"].keys()
    assert {"attention", "packed", "gelu", "skip"} <= told["encoder.onnx"].keys()
    for name, wanted in (
        ("encoder.onnx", {"Attention", "BiasGelu", "SkipLayerNormalization"}),
        ("unet.onnx", {"MultiHeadAttention", "SkipLayerNormalization"}),
        ("vae_decoder.onnx", {"GroupNorm"}),
    ):
        assert wanted <= {node.op_type for node in onnx.load(bundle / name).graph.node}
    with pytest.raises(BundleError, match=r"unet\.onnx holds \w+, .*write unet=cuda"):
        Decoder.open(bundle)
    monkeypatch.setattr(machine, "find_driver", lambda: (None, "there is no driver"))
    report = machine.examine(str(bundle))
    assert report.problems[-1].mend.endswith("or export it without --fuse cuda")
    assert "engines for GPUs" not in report.sections, "TensorRT does not know the operators"
    said = report.sections["bundle"]["vae_decoder"]
    assert said == "only with --device cuda, for vae_decoder.onnx holds GroupNorm"


def test_encoders_that_share_their_weights_are_fused_too(tmp_path: Path) -> None:
    for path in (*REFERENCE.glob("*encoder*.onnx"), *REFERENCE.glob("*.data")):
        shutil.copyfile(path, tmp_path / path.name)
    shared = (tmp_path / "encoder_shared.data").read_bytes()
    told = fuse_graphs(tmp_path, "cuda", "fp32", print)
    encoders = ["encoder.onnx", "encoder_10.onnx", "encoder_12.onnx"]
    assert list(told) == [*encoders, "image_encoder.onnx"]
    for name in encoders:
        assert {"attention", "packed", "gelu", "skip"} <= told[name].keys()
        assert told[name]["relative"] < 1e-5
    assert (tmp_path / "encoder_shared.data").read_bytes() == shared


def test_what_a_target_cannot_run_is_refused() -> None:
    check_fusing("cuda", ["cuda"], "fp16")
    check_fusing("attention", ["cpu", "cuda"], "int8")
    check_fusing("none", ["cpu", "rtx"], "int8")
    for targets in (["cpu"], ["cuda", "cpu"], ["cuda", "rtx"], []):
        with pytest.raises(InputError, match="only ONNX Runtime on a GPU can run"):
            check_fusing("cuda", targets, "fp16")
    with pytest.raises(InputError, match="exclude each other"):
        check_fusing("attention", ["rtx"], "fp16")
    with pytest.raises(InputError, match="must be one of none, attention, cuda; got 'norms'"):
        check_fusing("norms", ["cuda"], "fp16")
    with pytest.raises(InputError, match="no device would run such a bundle"):
        check_fusing("cuda", ["cuda"], "int8")
