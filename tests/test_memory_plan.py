"""What goes to the GPU is summed before it is loaded, and refused with the sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from scanside.runtime import Decoder
from scanside.runtime.bundle import Bundle
from scanside.runtime.cli import main
from scanside.runtime.devices import stage_devices
from scanside.runtime.engines import driver
from scanside.runtime.engines.graph_file import GraphFile
from scanside.runtime.errors import BundleError, DeviceError, InputError
from scanside.runtime.gguf_header import read_gguf_header
from scanside.runtime.graphs import graphs_of
from scanside.runtime.memory_plan import (
    CONTEXT_BYTES,
    WORKSPACE_BYTES,
    MemoryPlan,
    Part,
    parse_size,
    plan_memory,
)

MIB = 1 << 20


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open("reference")


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8 << 30), ("8 GiB", 8 << 30), ("6500M", 6500 << 20), ("0.5g", 1 << 29), ("123", 123)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "8T", "-1G", "G", "0", "eight"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="'vram' must be a size such as 8G"):
        parse_size(text)


def test_nothing_on_the_gpu_needs_nothing(bundle: Bundle) -> None:
    plan = plan_memory(bundle, stage_devices("cpu"))
    assert plan == MemoryPlan(parts=())
    plan.check(0, "'vram'")


def test_every_graph_of_the_bundle_is_counted(bundle: Bundle) -> None:
    stages = {stage for stage, _ in graphs_of(bundle.manifest)}
    plan = plan_memory(bundle, stage_devices("cuda"))
    assert {part.stage for part in plan.parts} == stages | {"language", "CUDA"}
    listed = {name for name in bundle.manifest.files if name.endswith(".onnx")}
    assert {file for _, file in graphs_of(bundle.manifest)} == listed


def test_onnx_runtime_keeps_memory_for_each_graph_apart(bundle: Bundle) -> None:
    plan = plan_memory(bundle, stage_devices("cpu,unet=cuda"))
    graph = GraphFile.read(bundle.path("unet.onnx"))
    unet = next(part for part in plan.parts if part.stage == "unet")
    assert unet.weights_bytes == graph.weights_bytes
    tensors = graph.activation_bytes + graph.edges_bytes
    assert unet.working_bytes == tensors + WORKSPACE_BYTES["cuda"]
    assert plan.total_bytes == unet.total_bytes + CONTEXT_BYTES


def test_engines_of_tensorrt_share_the_largest_buffer(bundle: Bundle) -> None:
    plan = plan_memory(bundle, stage_devices("rtx,language=cpu,preprocess=cpu"))
    shared = next(part for part in plan.parts if part.stage == "shared buffer")
    files = [file for _, file in graphs_of(bundle.manifest)]
    most = max(GraphFile.read(bundle.path(file)).activation_bytes for file in files)
    assert shared.total_bytes == most + WORKSPACE_BYTES["rtx"]


def test_the_language_model_counts_its_keys_and_values(bundle: Bundle) -> None:
    text = bundle.manifest.language
    assert text is not None
    path = bundle.path(text.file)
    reader = gguf.GGUFReader(path)
    sizes = {name: field.contents() for name, field in reader.fields.items()}
    cells = text.context * sizes["llama.attention.head_count_kv"]
    head = sizes["llama.embedding_length"] // sizes["llama.attention.head_count"]
    keys_and_values = 2 * sizes["llama.block_count"] * cells * head * 2
    (part,) = (
        part
        for part in plan_memory(bundle, stage_devices("cpu,language=cuda")).parts
        if part.stage == "language"
    )
    assert part.weights_bytes == path.stat().st_size
    assert keys_and_values < part.working_bytes < keys_and_values + 64 * MIB


def test_what_does_not_fit_is_refused_with_the_sum_and_the_way_out() -> None:
    parts = [("language", 5000), ("unet", 1800), ("CUDA", 512), ("vae_decoder", 300)]
    plan = MemoryPlan(
        parts=tuple(
            Part(stage=stage, weights_bytes=size * MIB, working_bytes=0) for stage, size in parts
        )
    )
    plan.check(8 << 30, "'vram'")
    with pytest.raises(DeviceError) as told:
        plan.check(4 << 30, "'vram'")
    assert str(told.value) == (
        "'vram' allows 4.0 GiB, and what goes to the GPU needs 7.4 GiB (language 4.9 GiB, unet "
        "1.8 GiB, CUDA 512 MiB, vae_decoder 300 MiB); write language=cpu into the device, or allow "
        "7.4 GiB"
    )
    with pytest.raises(DeviceError, match=r"write language=cpu,unet=cpu into the device"):
        plan.check(1 << 30, "a card")
    with pytest.raises(DeviceError, match="use device='cpu'"):
        plan.check(256 * MIB, "a card")


def test_a_decoder_that_does_not_fit_is_refused_before_the_gpu_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "_LIBRARY", "libcuda-that-is-not-there.so")
    with pytest.raises(
        DeviceError, match=r"^'vram' allows 100 MiB, .* needs [\d.]+ GiB \(CUDA 512"
    ):
        Decoder.open("reference", device="cuda", vram="100M")
    with pytest.raises(DeviceError, match="no NVIDIA driver was found"):
        Decoder.open("reference", device="cuda", vram="8G")


VERBS = {
    "decode": ["reference", "no.nii"],
    "chat": ["reference", "no.nii"],
    "watch": ["reference", "--source", "file:{run}", "--events", "{events}", "--out", "{out}"],
}
"""Verbs that decode, with as much as each needs to come to the bundle."""


@pytest.fixture
def words(small_run: Callable[..., Path], tmp_path: Path) -> Callable[[str], list[str]]:
    """The command line of a verb, less what is tested."""
    run, events = small_run(), tmp_path / "events.tsv"
    events.write_text("onset\tduration\ttrial_type\n1.6\t1\ta\n")
    places = {"run": run, "events": events, "out": tmp_path / "out"}
    return lambda verb: [verb, *(word.format(**places) for word in VERBS[verb])]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_decodes_names_its_flag(
    verb: str, words: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(verb), "--device", "cuda", "--vram", "lots"]) == 1
    assert capsys.readouterr().err == (
        f"scanside {verb}: --vram must be a size such as 8G or 6500M; got 'lots'\n"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_decodes_refuses_what_does_not_fit(
    verb: str, words: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(verb), "--device", "cuda", "--vram", "100M"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"scanside {verb}: --vram allows 100 MiB, and what goes to the GPU ")
    assert said.endswith("use device='cpu'\n")


def test_a_gguf_header_is_read_as_the_gguf_package_reads_it(bundle: Bundle) -> None:
    text = bundle.manifest.language
    assert text is not None
    path = bundle.path(text.file)
    found = read_gguf_header(path)
    for name, field in gguf.GGUFReader(path).fields.items():
        if name.startswith("GGUF."):
            continue
        value = field.contents()
        assert found[name] == (len(value) if isinstance(value, list) else value)
    assert found["general.architecture"] == "llama"


@pytest.mark.parametrize("length", [0, 3, 20, 60])
def test_a_gguf_that_ends_early_is_refused(bundle: Bundle, tmp_path: Path, length: int) -> None:
    text = bundle.manifest.language
    assert text is not None
    path = tmp_path / "cut.gguf"
    path.write_bytes(bundle.path(text.file).read_bytes()[:length])
    with pytest.raises(BundleError, match=r"cut\.gguf"):
        read_gguf_header(path)


def test_a_bundle_without_pictures_or_language_has_less(bundle: Bundle) -> None:
    bare = replace(bundle.manifest, diffusion=None, language=None, localization=None)
    plan = plan_memory(replace(bundle, manifest=bare), stage_devices("cuda"))
    assert {part.stage for part in plan.parts} <= {"encoder", "localizer", "CUDA"}
    assert np.sum([part.total_bytes for part in plan.parts]) == plan.total_bytes
