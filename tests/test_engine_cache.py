"""Engines are found by what they were made from and for, and never tried where that differs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scanside.runtime.bundle import REFERENCE, Bundle
from scanside.runtime.engines import engine_cache, rtx, tensorrt_builder
from scanside.runtime.engines.engine_cache import need_engine, search, user_shelf
from scanside.runtime.engines.engine_record import Record
from scanside.runtime.engines.fingerprint import Fingerprint, Validity, judge
from scanside.runtime.engines.tensorrt_library import library
from scanside.runtime.errors import BundleError, DeviceError
from scanside.tests.cards import HOPPER

PLAN = b"an engine's bytes"
HERE = Fingerprint(
    onnx="a" * 64,
    backend="tensorrt",
    version="11.4.0.106",
    capabilities=("sm_89",),
    gpu="NVIDIA GeForce RTX 4090",
    driver="580.65.06",
    profile="x:float32[1,4]",
    flags=("strongly-typed",),
    system="linux-x86_64",
)


def record(made: Fingerprint, stage: str = "unet") -> Record:
    return Record(
        stage=stage,
        fingerprint=made,
        sha256=hashlib.sha256(PLAN).hexdigest(),
        size_bytes=len(PLAN),
        layers={"attention": 3},
        latency_ms=1.25,
        builds=3,
    )


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The reference bundle, with an empty user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Bundle.open("reference")


CHANGES = {
    "onnx": ("b" * 64, "made from another graph"),
    "backend": ("rtx", "made by TensorRT-RTX, not TensorRT"),
    "version": ("10.13.3.9", "made by TensorRT 10.13.3.9, and 11.4.0.106 is here"),
    "capabilities": (("sm_86",), "made for sm_86, and NVIDIA GeForce RTX 4090 is sm_89"),
    "gpu": ("NVIDIA L40S", "made on a NVIDIA L40S, and this is a NVIDIA GeForce RTX 4090"),
    "profile": ("x:float32[2,4]", "made for the inputs"),
    "flags": (("strongly-typed", "sparse"), "made with strongly-typed, sparse"),
    "system": ("windows-amd64", "made for windows-amd64"),
}


def test_an_engine_that_matches_is_valid() -> None:
    assert judge(HERE, HERE).validity is Validity.VALID


@pytest.mark.parametrize("field", CHANGES)
def test_an_engine_that_differs_is_invalid_and_says_in_what(field: str) -> None:
    value, reason = CHANGES[field]
    verdict = judge(replace(HERE, **{field: value}), HERE)
    assert verdict.validity is Validity.INVALID
    assert reason in verdict.reason


def test_every_field_changes_the_key() -> None:
    keys = {HERE.key, replace(HERE, driver="1").key}
    keys |= {replace(HERE, **{field: value}).key for field, (value, _) in CHANGES.items()}
    assert len(keys) == len(CHANGES) + 2


def test_another_driver_is_usable_but_not_best() -> None:
    verdict = judge(replace(HERE, driver="575.1"), HERE)
    assert verdict.validity is Validity.SUBOPTIMAL
    assert verdict.reason == "it was made with driver 575.1, and 580.65.06 is here"


def test_an_engine_made_ahead_of_time_is_bound_to_no_gpu_and_no_driver() -> None:
    made = replace(HERE, capabilities=("sm_80", "sm_89"), gpu="", driver="")
    assert judge(made, HERE).validity is Validity.VALID


def test_a_version_compatible_engine_runs_on_later_versions_of_its_major_only() -> None:
    made = replace(HERE, flags=("strongly-typed", "version-compatible"))
    lean = replace(made, version="11.10.0")
    assert judge(made, lean).validity is Validity.SUBOPTIMAL
    assert judge(made, made).validity is Validity.VALID
    assert "costs time" in judge(made, HERE).reason
    for version in ("11.3.9", "12.0", "10.13"):
        assert judge(made, replace(made, version=version)).validity is Validity.INVALID
    assert "lean runtime" in judge(HERE, made).reason


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = record(HERE)
    path = tmp_path / f"{made.name}.json"
    path.write_text(made.to_json())
    assert Record.read(path) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("sm_89", "sm_90"), "was changed: its contents belong to"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "another version of scanside"),
        (lambda text: text[:50], "no record of an engine"),
        (lambda text: text.replace('"onnx"', '"onyx"'), "no record of an engine"),
    ],
)
def test_a_record_that_was_changed_is_refused(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = tmp_path / f"{record(HERE).name}.json"
    path.write_text(change(record(HERE).to_json()))
    with pytest.raises(BundleError, match=message):
        Record.read(path)


def test_a_stored_engine_is_found_again(bundle: Bundle) -> None:
    path = user_shelf("tensorrt").store(record(HERE), PLAN)
    assert path.read_bytes() == PLAN
    found = need_engine(bundle, "unet", HERE)
    assert found.path == path
    assert found.record == record(HERE)
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


def test_a_valid_engine_is_taken_before_one_that_is_only_usable(bundle: Bundle) -> None:
    shelf = user_shelf("tensorrt")
    shelf.store(record(replace(HERE, driver="575.1")), PLAN)
    assert need_engine(bundle, "unet", HERE).verdict.validity is Validity.SUBOPTIMAL
    best = shelf.store(record(HERE), PLAN)
    found = search(bundle, "unet", HERE)
    assert found.best is not None
    assert found.best.path == best
    assert [c.verdict.validity for c in found.others] == [Validity.SUBOPTIMAL]


def test_engines_of_other_stages_are_not_looked_at(bundle: Bundle) -> None:
    user_shelf("tensorrt").store(record(HERE, "unet-large"), PLAN)
    assert search(bundle, "unet", HERE).best is None


def test_an_engine_with_a_changed_byte_is_never_loaded(bundle: Bundle) -> None:
    path = user_shelf("tensorrt").store(record(HERE), PLAN)
    path.write_bytes(PLAN[:-1] + b"S")
    with pytest.raises(
        DeviceError,
        match=r"was changed: its SHA-256 .* scanside build reference --backend tensorrt",
    ):
        need_engine(bundle, "unet", HERE)
    path.write_bytes(PLAN + b"!")
    with pytest.raises(DeviceError, match="it has 18 bytes, not 17"):
        need_engine(bundle, "unet", HERE)
    path.unlink()
    with pytest.raises(DeviceError, match="its file is missing"):
        need_engine(bundle, "unet", HERE)


def test_an_engine_of_tensorrt_10_is_refused_by_11_and_the_other_way_round(bundle: Bundle) -> None:
    old = replace(HERE, version="10.13.3.9")
    user_shelf("tensorrt").store(record(old), PLAN)
    with pytest.raises(DeviceError, match=r"TensorRT 10\.13\.3\.9, and 11\.4\.0\.106 is here"):
        need_engine(bundle, "unet", HERE)
    user_shelf("tensorrt").store(record(HERE), PLAN)
    assert need_engine(bundle, "unet", old).record == record(old)


def test_where_there_is_none_the_message_says_how_to_make_one(bundle: Bundle) -> None:
    user_shelf("tensorrt").store(record(replace(HERE, onnx="c" * 64)), PLAN)
    with pytest.raises(DeviceError, match="there is no TensorRT engine of the unet") as caught:
        need_engine(bundle, "unet", HERE)
    assert "run scanside build reference --backend tensorrt" in str(caught.value)


def test_an_engine_in_a_bundle_counts_only_if_the_manifest_lists_it(
    bundle: Bundle, tmp_path: Path
) -> None:
    root = tmp_path / "moved"
    shutil.copytree(REFERENCE, root)
    folder = root / "engines" / "tensorrt"
    folder.mkdir(parents=True)
    made = record(HERE)
    (folder / f"{made.name}.plan").write_bytes(PLAN)
    (folder / f"{made.name}.json").write_text(made.to_json())
    smuggled = Bundle.open(root)
    with pytest.raises(DeviceError, match="the bundle's manifest does not list it"):
        need_engine(smuggled, "unet", HERE)
    listed = f"engines/tensorrt/{made.name}.plan"
    files = smuggled.manifest.files
    spec = next(iter(files.values()))
    files[listed] = replace(spec, sha256=made.sha256, size_bytes=made.size_bytes)
    assert need_engine(smuggled, "unet", HERE).path == root / listed


def test_weights_beside_a_graph_are_part_of_its_hash(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("encoder.onnx", "encoder_shared.data"):
        shutil.copyfile(bundle.path(name), tmp_path / name)
    graph, weights = tmp_path / "encoder.onnx", tmp_path / "encoder_shared.data"
    before = engine_cache.hash_of_graph(graph)
    assert before == engine_cache.hash_of_graph(bundle.path("encoder.onnx"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert engine_cache.hash_of_graph(graph) != before
    weights.unlink()
    with pytest.raises(BundleError, match="which holds weights of encoder.onnx"):
        engine_cache.hash_of_graph(graph)


def test_rtx_refuses_a_card_that_it_has_no_engines_for(bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match="NVIDIA H200 is sm_90; use device='cuda'"):
        rtx.rtx_here(library("rtx"), bundle.path("vae_decoder.onnx"), HOPPER)


def test_a_tensorrt_engine_is_bound_to_model_and_driver_of_the_gpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = tmp_path / "version"
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    )
    monkeypatch.setattr(tensorrt_builder, "_LINUX", version)
    path = bundle.path("vae_decoder.onnx")
    made = tensorrt_builder.tensorrt_fingerprint(library("rtx"), path, HOPPER, ("strongly-typed",))
    assert (made.gpu, made.driver, made.capabilities) == ("NVIDIA H200", "580.65.06", ("sm_90",))
    assert made.profile == "latent:float32[1,4,16,16]"
