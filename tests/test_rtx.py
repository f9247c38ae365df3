"""TensorRT-RTX builds the reference graphs and the full-size encoder, here, without a GPU."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from scanside.export.engines import check_targets, write_engines
from scanside.export.stages import StageReports
from scanside.runtime.bundle import Bundle
from scanside.runtime.engines.driver import Card, Driver
from scanside.runtime.engines.engine_cache import hash_of_graph, need_engine
from scanside.runtime.engines.graph_file import GraphFile
from scanside.runtime.engines.layers import count_layers, memory_of
from scanside.runtime.engines.rtx import fault_finder, rtx_here
from scanside.runtime.engines.rtx_builder import TARGETS, build_rtx
from scanside.runtime.engines.tensorrt_library import Library, library
from scanside.runtime.errors import DeviceError, InputError, MissingExtraError
from scanside.runtime.manifest import FileSpec
from scanside.runtime.user_cache import sha256_of

sys.path.insert(0, str(Path(__file__).parent))
from half_graphs import STAGES, half_graphs
from make_full_encoder import filled

NORMS = ("LayerNormalization", "InstanceNormalization", "GroupNormalization")


@pytest.fixture(scope="module")
def rtx() -> Library:
    return library("rtx")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return half_graphs(tmp_path_factory.mktemp("half"))


def check_fusion(layers: dict[str, int], graph: GraphFile) -> None:
    """Attention and every normalisation in one layer each; nothing of attention left in pieces."""
    assert layers.get("attention", 0) == graph.operators.get("Softmax", 0)
    assert "softmax" not in layers
    assert layers["normalisation"] == sum(graph.operators.get(kind, 0) for kind in NORMS)


@pytest.mark.parametrize(
    ("stage", "targets"),
    [("encoder", ("sm_89",)), ("unet", ("sm_89",)), ("vae_decoder", TARGETS)],
)
def test_a_reference_graph_in_half_precision_is_built_and_fused(
    rtx: Library, graphs: Path, stage: str, targets: tuple[str, ...]
) -> None:
    path = graphs / STAGES[stage]
    graph = GraphFile.read(path)
    record, plan = build_rtx(rtx, stage, path, targets)
    check_fusion(record.layers, graph)
    made = record.fingerprint
    assert made.onnx == hash_of_graph(path)
    assert (made.backend, made.version) == ("rtx", rtx.api.__version__)
    assert made.capabilities == targets
    assert (made.gpu, made.driver) == ("", "")
    assert record.size_bytes == len(plan) > graph.weights_bytes
    # one copy of the weights, padded
    assert record.weights_bytes == pytest.approx(graph.weights_bytes, rel=0.01)
    assert record.activation_bytes > graph.activation_bytes / 2


def test_the_full_size_encoder_is_built_and_fused(rtx: Library, tmp_path: Path) -> None:
    path = filled(tmp_path)
    graph = GraphFile.read(path)
    assert graph.operators["Softmax"] == 16
    assert graph.weights_bytes > 300e6
    record, _ = build_rtx(rtx, "encoder", path, ("sm_89",))
    check_fusion(record.layers, graph)
    assert record.weights_bytes == pytest.approx(graph.weights_bytes, rel=0.01)
    for file in tmp_path.iterdir():
        file.unlink()


def saved(path: Path, node: onnx.NodeProto, opset: int = 20, *more: onnx.TensorProto) -> Path:
    """One node from its inputs, all (1, 2, 4, 8) float32, to y."""
    given = [name for name in node.input if name not in {tensor.name for tensor in more}]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2, 4, 8)) for name in names]
        for names in (given, "y")
    )
    graph = helper.make_graph([node], "one", inputs, outputs, list(more))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("elsewhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def test_an_operator_that_the_parser_rejects_is_named(rtx: Library, tmp_path: Path) -> None:
    node = helper.make_node("Telepathy", ["x"], ["y"], name="mind", domain="elsewhere")
    path = saved(tmp_path / "odd.onnx", node)
    with pytest.raises(
        DeviceError, match=r"rejects odd\.onnx: Telepathy 'mind': .*device="
    ) as told:
        build_rtx(rtx, "unet", path, ("sm_89",))
    assert "\n" not in str(told.value)


def test_attention_in_float32_is_rejected_with_the_librarys_reason(
    rtx: Library, tmp_path: Path
) -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attend")
    path = saved(tmp_path / "single.onnx", node, 23)
    with pytest.raises(DeviceError, match=r"cannot build single\.onnx: .*--precision fp16") as told:
        build_rtx(rtx, "unet", path, ("sm_89",))
    assert "it gave no reason" not in str(told.value)


def test_a_kind_of_gpu_that_it_has_nothing_for_is_refused(rtx: Library, graphs: Path) -> None:
    with pytest.raises(InputError, match=r"'gpu' must be of .*sm_120.*; got 'sm_90'"):
        build_rtx(rtx, "vae_decoder", graphs / "vae_decoder.onnx", ("sm_90",))


def test_bytes_that_are_no_engine_are_refused_before_they_are_loaded(rtx: Library) -> None:
    runtime = rtx.api.Runtime(rtx.log().sink)
    assert fault_finder(rtx)(runtime, b"x" * 4096) == "its bytes are damaged"


def test_a_library_for_a_newer_cuda_than_the_driver_is_refused(rtx: Library) -> None:
    old = Driver(cuda=(12, 8), gpus=())
    with pytest.raises(DeviceError, match=r"built for CUDA 13, and the driver is for CUDA 12\.8"):
        rtx.need_driver(old)
    rtx.need_driver(Driver(cuda=(13, 0), gpus=()))
    replace(rtx, cuda_major=None).need_driver(old)


def test_without_the_package_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("tensorrt_rtx_bindings", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'scanside\[rtx\]'"):
        library("rtx")


def test_layers_are_counted_by_what_was_fused_into_them() -> None:
    log = [
        "Name: _gemm_mha_v2_myl0_7, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [1] } ]\n"
        "Name: __myl_MaxrSubExpSumDivMul_myl0_8, LayerType: kgen, Inputs: []",
        "Name: __myl_AddMeanSubMulMeanAddSqrtDivMul_myl0_9, LayerType: kgen, Inputs: []",
        "Name: node_MatMul_1+node_MatMul_2, LayerType: gemm, Inputs: []",
        "Name: __mye1, LayerType: signal, Inputs: []",
        "Total Weights Memory: 1234 bytes",
    ]
    assert count_layers(log) == {"attention": 1, "normalisation": 1, "product": 1, "softmax": 1}
    assert memory_of(log) == {"weights": 1234}


def test_a_graph_in_single_precision_is_seen_to_leave_attention_in_pieces(
    rtx: Library, tmp_path: Path
) -> None:
    """So the counts above can fail."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), "w")
    path = saved(
        tmp_path / "pieces.onnx", helper.make_node("MatMul", ["x", "w"], ["s"]), 20, weight
    )
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Softmax", ["s"], ["p"], axis=-1))
    model.graph.node.append(helper.make_node("MatMul", ["p", "w"], ["y"]))
    onnx.save(model, path)
    record, _ = build_rtx(rtx, "pieces", path, ("sm_89",))
    assert "attention" not in record.layers
    assert record.layers["softmax"] == 1


def test_export_puts_an_engine_for_every_gpu_into_the_bundle(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rtx: Library
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copyfile(graphs / "vae_decoder.onnx", folder / "vae_decoder.onnx")
    reports, said = StageReports(), list[str]()
    write_engines(folder, ["cpu", "rtx"], reports, said.append)
    (plan,) = (folder / "engines" / "rtx").glob("*.plan")
    name = plan.relative_to(folder).as_posix()
    assert reports.producer[name] == rtx.name
    assert said == [f"engine of vae_decoder ({rtx.name})"]
    reference = Bundle.open("reference")
    listed = FileSpec(sha256=sha256_of(plan), size_bytes=plan.stat().st_size)
    files = reference.manifest.files | {name: listed}
    bundle = replace(reference, root=folder, manifest=replace(reference.manifest, files=files))
    for kind in TARGETS:
        major, minor = int(kind[3:-1]), int(kind[-1])
        card = Card(
            number=0,
            name="a card",
            capability=(major, minor),
            memory_bytes=1 << 33,
            multiprocessors=1,
        )
        here = rtx_here(rtx, folder / "vae_decoder.onnx", card)
        assert need_engine(bundle, "vae_decoder", here).path == plan


def test_export_for_tensorrt_says_where_its_engines_are_built() -> None:
    with pytest.raises(InputError, match="scanside build BUNDLE --backend tensorrt"):
        check_targets(["cpu", "tensorrt"])
    check_targets(["cpu", "cuda", "rtx"])
