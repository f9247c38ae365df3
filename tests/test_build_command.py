"""`scanside build`: engines into the user's cache, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scanside.runtime.bundle import Bundle
from scanside.runtime.cli import main
from scanside.runtime.engines import driver
from scanside.runtime.engines.engine_cache import need_engine
from scanside.runtime.engines.engine_record import Record
from scanside.runtime.engines.rtx import rtx_here
from scanside.runtime.engines.tensorrt_library import library
from scanside.runtime.errors import DeviceError
from scanside.tests.cards import ADA, TURING


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "scanside" / "engines"


def build(*words: str) -> int:
    return main(["build", "reference", *words])


def test_an_engine_is_built_into_the_users_cache_and_found_there(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build("--stage", "vae_decoder", "--gpu", "sm_89,sm_120") == 0
    out, err = capsys.readouterr()
    (plan,) = (cache / "rtx").glob("*.plan")
    record = Record.read(plan.with_suffix(".json"))
    version = library("rtx").version
    assert out.splitlines()[0] == f"vae_decoder: rtx {version} for sm_89, sm_120"
    assert f"  {plan}" in out.splitlines()
    assert f"fingerprint {record.fingerprint.key}" in out
    assert "17 normalisation" in out
    assert err == ""
    bundle = Bundle.open("reference")
    path = bundle.path("vae_decoder.onnx")
    found = need_engine(bundle, "vae_decoder", rtx_here(library("rtx"), path, ADA))
    assert found.path == plan
    assert found.verdict.reason == ""
    with pytest.raises(DeviceError, match=r"made for sm_89, sm_120, and NVIDIA T4 is sm_75"):
        need_engine(bundle, "vae_decoder", rtx_here(library("rtx"), path, TURING))


def test_json_is_one_object_and_nothing_else(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build("--stage", "vae_decoder", "--gpu", "sm_89", "--json") == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert engine["stage"] == "vae_decoder"
    assert Path(engine["path"]).is_relative_to(cache)
    assert engine["fingerprint"]["capabilities"] == ["sm_89"]
    assert engine["key"] in engine["path"]
    assert engine["size_bytes"] == Path(engine["path"]).stat().st_size


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpu", "sm_90"], "--gpu must be of sm_75,"),
        (["--stage", "soul"], "--stage must be of encoder, concept_encoder,"),
        (["--portable"], "--portable goes with --backend tensorrt only"),
        (["--backend", "tensorrt", "--gpu", "sm_89"], "--gpu goes with --backend rtx only"),
        (["--backend", "tensorrt", "--builds", "-1"], "--builds must be at least 1; got -1"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(*words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"scanside build: {sentence}")
    assert err.count("\n") == 1


def test_tensorrt_without_a_driver_is_one_sentence_before_the_library_is_touched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "_LIBRARY", "libcuda-that-is-not-there.so")
    assert build("--backend", "tensorrt") == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "scanside build: device 'tensorrt' was asked for, but no NVIDIA driver was found"
    )
    assert err.count("\n") == 1
